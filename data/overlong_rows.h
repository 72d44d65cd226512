// Rows of more tokens than they may have: left out, cut, or refused (--overlong_rows). What is cut:
//   a prompt       its question loses its beginning, as TRL truncates prompts; what stands around it (chat template, system
//                  message, instruction, examples) stays whole
//   an example     its completion loses its end, and the end token with it, so that nothing teaches to stop there
//   a row of text  the same, or (wrap) goes on in further rows, TRL's packing_strategy "wrapped" without its mixing of rows
// A row whose prompt leaves no room for what is learnt is left out however it is cut.
// The trap: held-out problems are none of this. An evaluation that leaves rows out is of another set.
#pragma once
#include <string>
#include <vector>
#include "examples.h"

enum class Overlong { drop, truncate, wrap, error };

inline Overlong overlong_of(const std::string& word) {
    return word == "drop"       ? Overlong::drop
           : word == "truncate" ? Overlong::truncate
           : word == "wrap"     ? Overlong::wrap
                                : Overlong::error;
}

// What a row may have, and by what
struct RowLimit {
    int64_t tokens = 0;
    std::string flag;  // "--max_length 512"
};

// The overlong rows of one file
struct OverlongRows {
    Overlong how = Overlong::error;
    int64_t rows = 0, count = 0, left_out = 0, further = 0;  // all; those too long; further: what wrap has made of them
    std::string first, limit;                                // "file.jsonl:33 with 812 tokens", its RowLimit::flag

    void found(const std::string& source, int line, int64_t tokens, const RowLimit& most) {
        if (count++) return;
        first = format("%s:%d with %lld tokens", source.c_str(), line, (long long)tokens);
        limit = most.flag;
    }
};

// says what was done with them; a file of which nothing is left is an error
inline void say_overlong(const OverlongRows& o, const std::string& path) {
    if (o.count == 0) return;
    if (o.left_out == o.rows)
        fail("%s: all %lld rows are longer than %s allows, and nothing is left to train on; raise it%s; the first: %s",
             path.c_str(), (long long)o.rows, o.limit.c_str(),
             o.how == Overlong::drop ? ", or cut them with --overlong_rows truncate" : "", o.first.c_str());
    std::string what = o.left_out == o.count     ? "are left out"
                       : o.how == Overlong::wrap ? "go on in further rows"
                                                 : "are cut";
    if (o.further) what += format(", %lld of them", (long long)o.further);
    if (o.left_out && o.left_out < o.count) what += format(", but %lld of them are left out", (long long)o.left_out);
    note_once(format("note: %s: %lld of %lld rows are longer than %s allows and %s (--overlong_rows %s); the first: %s",
                     escape_controls(path).c_str(), (long long)o.count, (long long)o.rows, o.limit.c_str(),
                     what.c_str(),
                     o.how == Overlong::drop       ? "drop"
                     : o.how == Overlong::truncate ? "truncate"
                                                   : "wrap",
                     escape_controls(o.first).c_str()));
}

// ---------------------------------------------------------------------------------------------------------------------
// prompts

// the text of the last message of the user, or of the question
inline std::string& question_text(Problem& p) {
    for (size_t i = p.messages.size(); i-- > 0;)
        if (message_has_role(p.messages[i], "user")) return p.messages[i]["content"].get_ref<std::string&>();
    return p.question;
}

// p, the problem's prompt, with as much of the end of its question as fits into `most` tokens. false: nothing of it does
inline bool cut_prompt(const Tokenizer& tok, const Problem& whole, const PromptConfig& c, int64_t most, Prompt& p) {
    Problem problem = whole;
    while ((int64_t)p.tokens.size() > most) {
        std::vector<int> ids;
        tokenizer_encode(tok, problem.question, ids);
        size_t cut = 0;
        for (int64_t i = 0; i < (int64_t)p.tokens.size() - most && i < (int64_t)ids.size(); i++)
            cut += tokenizer_token_bytes(tok, ids[(size_t)i]).size();
        const std::string& q = problem.question;
        while (cut < q.size() && ((unsigned char)q[cut] & 0xC0) == 0x80) cut++;  // not within a character
        const std::string rest = cut < q.size() ? q.substr(std::max(cut, (size_t)1)) : "";
        if (trim_field(rest).empty()) return false;
        question_text(problem) = rest;
        problem.question = rest;
        p = make_prompt(tok, problem, c);
    }
    p.problem = std::make_shared<const Problem>(whole);  // which the held-out ones are compared with
    return true;
}

// false: the row is left out. p: its prompt, which is cut where it must be
inline bool fit_prompt(OverlongRows& o, const Tokenizer& tok, const Problem& problem, const PromptConfig& c,
                       const RowLimit& most, Prompt& p) {
    o.rows++;
    const int64_t n = (int64_t)p.tokens.size();
    if (n <= most.tokens) return true;
    o.found(problem.source, problem.line, n, most);
    if (o.how == Overlong::truncate && cut_prompt(tok, problem, c, most.tokens, p)) return true;
    o.left_out++;
    return false;
}

// ---------------------------------------------------------------------------------------------------------------------
// examples

// Adds the example to `all`: as it is, cut, in pieces, or not. source, line: where it stands
inline void add_fitting(OverlongRows& o, std::vector<Example>& all, Example e, const std::string& source, int line,
                        const RowLimit& most) {
    o.rows++;
    const int64_t prompt = (int64_t)e.prompt.tokens.size(), n = prompt + (int64_t)e.completion.size();
    if (n <= most.tokens) return all.push_back(std::move(e));
    o.found(source, line, n, most);
    if (o.how == Overlong::truncate) {
        example_cut(e, most.tokens - prompt);
        if (completion_tokens(e) > 0) return all.push_back(std::move(e));
    } else if (o.how == Overlong::wrap && prompt == 0) {
        for (int64_t first = 0; first + 1 < n; first += most.tokens) {  // of one token alone nothing is learnt
            Example piece;
            piece.prompt = e.prompt;
            piece.completion.assign(e.completion.begin() + first,
                                    e.completion.begin() + std::min(first + most.tokens, n));
            o.further += first > 0;
            all.push_back(std::move(piece));
        }
        return;
    }
    o.left_out++;
}
