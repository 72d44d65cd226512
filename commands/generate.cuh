// generate: complete one prompt, printed as it is sampled.
#pragma once
#include <unistd.h>
#include <iostream>
#include "problems.cuh"

inline std::string read_standard_input() {
    std::string text;
    char block[1 << 16];
    while (std::cin.read(block, sizeof(block)) || std::cin.gcount() > 0) {
        text.append(block, (size_t)std::cin.gcount());
        if (text.size() > DATASET_MAX_LINE) fail("standard input: more than %zu MiB", DATASET_MAX_LINE >> 20);
    }
    return text;
}

inline int generate_command(Session& s) {
    Options& o = s.o;
    if (o.model.empty()) fail_usage("generate needs --model: a Hugging Face folder or a .gguf file");
    session_open(s);
    Problem problem;
    problem.question = o.given("prompt") ? o.prompt : read_standard_input();
    install_stop_handler();  // not before the prompt is read: Ctrl-C must end the wait for it
    problem.source = o.given("prompt") ? "--prompt" : "standard input";
    problem.line = 1;
    Prompt p = checked_prompt(s, problem);
    RolloutState state;
    RolloutConfig config = rollout_config(s);
    session_plan(s, false,
                 [&] { rollout_allocate(state, s.m, rollout_shape(1, 1, (int64_t)p.tokens.size(), config)); });
    if (session_allocate(s)) return 0;
    session_load_weights(s);
    buffer_forget(s.m.master);  // nothing is trained
    config.pass = model_pack(s.m);
    Utf8Streamer stream;
    RolloutStats stats;
    const bool terminal = isatty(STDOUT_FILENO);  // a file or a pipe gets the bytes
    auto print = [&](const std::string& text) {
        const std::string shown_text = terminal ? escape_controls(text, "\n\t") : text;
        fwrite(shown_text.data(), 1, shown_text.size(), stdout);
        fflush(stdout);
    };
    std::vector<Completion> done = rollout(s.m, state, {p.tokens}, 1, config, &stats, [&](int, int token) {
        print(utf8_stream_push(stream, tokenizer_token_bytes(s.tok, token, true)));
        return !stop_requested() && !ferror(stdout);
    });
    print(utf8_stream_flush(stream) + "\n");
    fprintf(stderr, "%lld prompt tokens, %lld new tokens, %.2f s, %s tok/s%s\n", (long long)stats.prompt_tokens,
            (long long)stats.completion_tokens, stats.seconds,
            human_count((double)(stats.prompt_tokens + stats.completion_tokens) / stats.seconds).c_str(),
            done[0].finished   ? ""
            : stop_requested() ? ", stopped"
                               : ", cut off at --max_completion_length");
    return stop_requested() ? stop_exit_code() : 0;
}
