// Rollout: sample G completions of each of P prompts in one batch, over a KV cache, through the very forward the
// trainer uses (model_forward), so that a sampled token's log-probability is the trainer's to the last bit.
//
// A prompt is run once and its keys and values are shared by its G samples (place 0 of the cache); every sample owns a
// slot of the cache for its own tokens (place 1). Slots are refilled as samples end (continuous batching), so that
// --rollout_batch bounds the memory whatever P x G is. Which slot or batch a sample runs in does not change its tokens:
// the draw is keyed by (seed, step, prompt, sample, token) and the forward is batch invariant.
#pragma once
#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>
#include "kernels/sampling.cuh"
#include "model.cuh"
#include "model/decode_graph.cuh"
#include "runtime/progress.h"
#include "runtime/stop_strings.h"

struct RolloutConfig {
    SamplingParams sampling;
    Pass pass;  // of every forward
    int max_completion_length = 256;
    std::vector<int> stop_tokens;
    StopStrings stop_strings;
    int n_allowed = 0;        // ids the tokenizer knows; padded rows of the vocabulary lie above
    int max_sequences = 256;  // slots decoded at once
    int prefill_tokens = 4096;
    uint64_t seed = 0;
    uint32_t stream = RNG_SAMPLE, step = 0;  // with prompt, sample and token: the key of a draw
    int first_prompt = 0;                    // number of the first prompt among those of all ranks
    std::vector<int> prompt_numbers;         // of each prompt, where they do not follow one another; else empty
};

struct Completion {
    int prompt = 0, sample = 0;
    std::vector<int> tokens;   // the stop token included
    std::vector<float> logps;  // of each token under the whole softmax at the sampling temperature
    bool finished = false;     // ended with a stop token or a stop string
    bool stop_token = false;   // the last token is one, and no text
};

struct RolloutStats {
    int64_t prompt_tokens = 0, completion_tokens = 0;
    double seconds = 0.0;
    int64_t tokens() const { return prompt_tokens + completion_tokens; }
};

// What a rollout needs room for
struct RolloutShape {
    int slots = 0;                          // sequences decoded at once
    int64_t prompt_rows = 0, own_rows = 0;  // of the cache: prompts, and the slots' own tokens
    int64_t tokens = 0;                     // of one forward
    int regions = 0;                        // prompts held at once
    bool seen = false;                      // the tokens of each slot, for a repetition penalty
};

// P prompts of at most `longest` tokens, G samples each
inline RolloutShape rollout_shape(int P, int G, int64_t longest, const RolloutConfig& c) {
    RolloutShape s;
    s.slots = (int)std::min<int64_t>((int64_t)P * G, c.max_sequences);
    // a slow sample keeps its prompt's keys alive while later prompts start: allow twice the least number of prompts, but
    // no more than there can be samples at once
    s.regions = std::min({P, 2 * ((s.slots + G - 1) / G) + 1, s.slots});
    s.prompt_rows = s.regions * longest;
    s.own_rows = (int64_t)s.slots * c.max_completion_length;
    s.tokens = std::max<int64_t>({s.slots, c.prefill_tokens, longest});
    s.seen = sampling_penalizes(c.sampling);
    return s;
}

inline RolloutShape rollout_larger(const RolloutShape& a, const RolloutShape& b) {
    return {std::max(a.slots, b.slots),   std::max(a.prompt_rows, b.prompt_rows), std::max(a.own_rows, b.own_rows),
            std::max(a.tokens, b.tokens), std::max(a.regions, b.regions),         a.seen || b.seen};
}

inline bool rollout_fits(const RolloutShape& have, const RolloutShape& need) {
    return have.slots >= need.slots && have.prompt_rows >= need.prompt_rows && have.own_rows >= need.own_rows &&
           have.tokens >= need.tokens && have.regions >= need.regions && have.seen >= need.seen;
}

// memory that stays from one rollout to the next
struct RolloutState {
    RolloutShape shape;
    KVCache cache;
    Activations acts;
    BatchMemory decode;           // the batch of a decode step, at the same addresses in every step
    Buffer<float> logits;         // [logit_rows, V]
    Buffer<floatX> hidden, last;  // [slots, C] of this step; [regions, C] of each prompt's last token
    Buffer<int> index;            // [slots]
    Buffer<int> drawn;            // [2, slots]: tokens, then the bits of their log-probabilities
    PinnedBuffer drawn_host;      // the same
    Buffer<uint32_t> seen;        // [slots, words]; or none
    DecodeGraphs graphs;
    static constexpr int64_t logit_rows = 128;
};

inline void rollout_allocate(RolloutState& s, const Model& m, const RolloutShape& shape) {
    s.shape = shape;
    s.graphs.clear();
    for (int place : {0, 1}) {
        const char* hint = place ? "lower --rollout_batch or --max_completion_length" : "lower --rollout_batch";
        std::string what = place ? "KV cache of the samples" : "KV cache of the prompts";
        if (m.kv_rules.on()) what += ", " + rules_text(m.kv_rules);
        kv_cache_allocate(s.cache, m, place, place ? shape.own_rows : shape.prompt_rows, what.c_str(), hint);
    }
    activations_allocate(s.acts, m, shape.tokens, ActivationMode::inference);
    batch_memory_allocate(s.decode, shape.slots, m.dev);
    s.hidden.allocate((size_t)shape.slots * m.C(), "hidden states of generation", "", m.dev);
    s.last.allocate((size_t)shape.regions * m.C(), "hidden states of generation", "", m.dev);
    s.logits.allocate((size_t)std::min<int64_t>(shape.slots, RolloutState::logit_rows) * m.V(), "a block of logits", "",
                      m.dev);
    s.index.allocate(shape.slots, "hidden states of generation", "", m.dev);
    s.seen.allocate(shape.seen ? (size_t)shape.slots * seen_words(m.V()) : 0, "tokens that a penalty is of",
                    "lower --rollout_batch", m.dev);
    s.drawn.allocate(2 * (size_t)shape.slots, "hidden states of generation", "", m.dev);
    pinned_allocate(s.drawn_host, 2 * (size_t)shape.slots * sizeof(int), m.dev);
}

// What the rows of a batch have seen; nothing without a repetition penalty. slots: [rows]
inline SeenTokens rollout_seen(const Model& m, const RolloutState& s, const int* slots, const RolloutConfig& config) {
    if (!sampling_penalizes(config.sampling)) return SeenTokens();
    return {s.seen.data, slots, seen_words(m.V())};
}

// One token for each of n rows of hidden: logits of a block of rows, then the draw. b: keys and slots [n] of the draws;
// results in s.drawn
inline void draw_tokens(Model& m, RolloutState& s, const floatX* hidden, const BatchView& b, int64_t n,
                        const RolloutConfig& config) {
    NVTX_RANGE("sample");
    const int64_t C = m.C(), V = m.V();
    float* logps = reinterpret_cast<float*>(s.drawn.data + s.shape.slots);
    SeenTokens seen = rollout_seen(m, s, b.slots, config);
    for (int64_t first = 0; first < n; first += RolloutState::logit_rows) {
        int64_t rows = std::min<int64_t>(RolloutState::logit_rows, n - first);
        if (config.pass.packed && !m.dev.cuda)
            gemm_nt_packed(s.logits.data, hidden + first * C, m.head_layout, nullptr, rows);
        else matmul_nt(Rows{s.logits.data, V}, {hidden + first * C, C}, {m.head.work, C}, nullptr, rows, V, C, m.dev);
        sample_rows(s.drawn.data + first, logps + first, s.logits.data, {rows, V, config.n_allowed}, config.sampling,
                    DrawStream{config.seed, config.stream}, b.draws + first, m.dev, seen);
        if (seen.bits) seen.slots += rows;
    }
}

// s.drawn of the last draw of n tokens, on the host
inline void fetch_drawn(RolloutState& s, int64_t n, std::vector<int>& tokens, std::vector<float>& logps, Device dev) {
    copy_to_host(s.drawn_host.data, s.drawn.data, 2 * (size_t)s.shape.slots * sizeof(int), dev);
    const int* t = reinterpret_cast<const int*>(s.drawn_host.data);
    const float* l = reinterpret_cast<const float*>(t + s.shape.slots);
    tokens.insert(tokens.end(), t, t + n);
    logps.insert(logps.end(), l, l + n);
}

// One token forward for every row of b, and the next one drawn. On a device the step is captured in a CUDA graph at its
// second use and replayed from then on: a step launches some 15 kernels a layer, which cost more to launch one by one
// than to run at the sizes of generation.
inline void decode_step(Model& m, RolloutState& s, Batch& b, const RolloutConfig& config) {
    NVTX_RANGE("decode_step");
    auto step = [&](const BatchView& v) {
        model_forward_view(m, s.acts, v, config.pass, &s.cache);
        if (sampling_penalizes(config.sampling)) seen_mark(rollout_seen(m, s, v.slots, config), v.tokens, v.T, m.dev);
        draw_tokens(m, s, s.acts.hidden, v, v.T, config);
    };
#if HAS_KERNELS
    if (m.dev.cuda) {
        // few sizes, so few graphs: rows beyond the batch attend to nothing and write nowhere
        int64_t rows = std::min<int64_t>(CEIL_DIV(b.T(), 16) * 16, s.shape.slots);
        b.tokens.resize(rows, 0);
        b.positions.resize(rows, 0);
        b.ranges.resize(rows, KeyRange());
        b.writes.resize(rows, CacheRow{0, -1});
        b.draws.resize(rows, DrawKey());
        if (sampling_penalizes(config.sampling)) b.slots.resize(rows, -1);
        BatchView v = batch_view(s.decode, b, m.dev);
        v.most_keys = CEIL_DIV(v.most_keys, DecodeGraphs::keys_step) * DecodeGraphs::keys_step;
        DecodeGraphKey key = {v.T,
                              v.most_keys,
                              config.pass.packed && m.work_quantized,
                              config.sampling,
                              config.seed,
                              config.stream,
                              config.n_allowed,
                              config.pass.norms,
                              rotated_linears(m)};
        decode_graph_run(s.graphs, key, m.dev, [&] { step(v); });
        return;
    }
#endif
    step(batch_view(s.decode, b, m.dev));
}

// Which sample is in which slot of the cache, and which prompt in which region of `longest` rows
struct RolloutSlots {
    struct Slot {
        int completion = -1, region = 0;
        std::string tail;  // of its text, see stop_strings_take
    };
    std::vector<Slot> slot;
    std::vector<int> region_of;                   // [P], -1: not in the cache
    std::vector<int> region_left, region_prompt;  // [regions] samples that have not ended, and of which prompt
    std::vector<int> starting, running;  // slots of this step: those with a prompt just run, and those with a new token
    std::vector<Completion> done;        // [P * G], prompt by prompt
    int next = 0;                        // the next of them to start
    int G = 1;
    int64_t longest = 0;
    Pass pass;
    RolloutStats stats;
    Progress* reading = nullptr;  // of the prompts before the first token

    DrawKey draw_key(int i, const RolloutConfig& config) const {
        const Completion& c = done[slot[i].completion];
        const int number =
            config.prompt_numbers.empty() ? config.first_prompt + c.prompt : config.prompt_numbers[c.prompt];
        return {config.step, (uint32_t)(number * G + c.sample), (uint32_t)c.tokens.size()};
    }
};

// of the longest prompt; fails unless every completion fits behind it
inline int64_t rollout_check(const std::vector<std::vector<int>>& prompts, const Model& m,
                             const RolloutConfig& config) {
    int64_t longest = 0;
    for (const std::vector<int>& p : prompts) {
        if (p.empty())
            fail("a prompt has no tokens; give at least one (a beginning-of-text token, or a prompt template)");
        longest = std::max(longest, (int64_t)p.size());
    }
    if (longest + config.max_completion_length > m.config.max_position_embeddings)
        fail("a prompt of %lld tokens and --max_completion_length %d exceed the model's context of %d; shorten one",
             (long long)longest, config.max_completion_length, m.config.max_position_embeddings);
    return longest;
}

// Prompts through the model into their regions, and the hidden state of each one's last token to s.last
inline void rollout_prefill(Model& m, RolloutState& s, RolloutSlots& r, Batch& prefill, std::vector<int>& regions) {
    if (prefill.tokens.empty()) return;
    const int64_t C = m.C();
    model_forward(m, s.acts, prefill, r.pass, &s.cache);
    for (size_t i = 0; i < regions.size(); i++)
        copy_on_device(s.last.data + regions[i] * C, s.acts.hidden + (int64_t)(prefill.starts[i + 1] - 1) * C,
                       C * sizeof(floatX), m.dev);
    r.stats.prompt_tokens += prefill.T();
    if (r.reading) r.reading->add((int64_t)regions.size());
    prefill = Batch();
    regions.clear();
}

// Fills free slots. Prompts that are not yet in the cache are run together, up to prefill_tokens at a time.
inline void rollout_fill(Model& m, RolloutState& s, RolloutSlots& r, const std::vector<std::vector<int>>& prompts) {
    r.starting.clear();
    Batch prefill;
    std::vector<int> regions;
    for (int i = 0; i < (int)r.slot.size() && r.next < (int)r.done.size(); i++) {
        if (r.slot[i].completion >= 0) continue;
        const int p = r.next / r.G;
        if (r.region_of[p] < 0) {
            auto free = std::find(r.region_left.begin(), r.region_left.end(), 0);
            if (free == r.region_left.end()) break;  // every region is in use: wait for a prompt's last sample
            const int region = (int)(free - r.region_left.begin());
            const std::vector<int>& tokens = prompts[p];
            if (prefill.T() + (int64_t)tokens.size() > s.acts.capacity) rollout_prefill(m, s, r, prefill, regions);
            batch_add_sequence(prefill, tokens.data(), (int)tokens.size());
            for (size_t j = 0; j < tokens.size(); j++) prefill.writes.push_back({0, region * r.longest + (int64_t)j});
            regions.push_back(region);
            r.region_of[p] = region;
            r.region_left[region] = r.G;
            r.region_prompt[region] = p;
        }
        r.done[r.next].prompt = p;
        r.done[r.next].sample = r.next % r.G;
        r.slot[i] = {r.next++, r.region_of[p], ""};
        r.starting.push_back(i);
    }
    rollout_prefill(m, s, r, prefill, regions);
}

// The last token of every running sample: where its keys are, where it goes, and the key of the next draw
inline Batch rollout_batch(const RolloutSlots& r, const std::vector<std::vector<int>>& prompts,
                           const RolloutConfig& config) {
    Batch b;
    for (int i : r.running) {
        const Completion& c = r.done[r.slot[i].completion];
        const int n = (int)c.tokens.size(), prompt_length = (int)prompts[c.prompt].size();
        KeyRange range;
        range.row0 = r.slot[i].region * r.longest;
        range.n0 = prompt_length;
        range.row1 = (int64_t)i * config.max_completion_length;
        range.n1 = n;
        b.tokens.push_back(c.tokens.back());
        b.positions.push_back(prompt_length + n - 1);
        b.ranges.push_back(range);
        b.writes.push_back({1, range.row1 + n - 1});
        b.draws.push_back(r.draw_key(i, config));
        if (sampling_penalizes(config.sampling)) b.slots.push_back(i);
    }
    return b;
}

// What a starting sample has seen is its prompt
inline void rollout_start_seen(Model& m, RolloutState& s, const RolloutSlots& r,
                               const std::vector<std::vector<int>>& prompts) {
    int of = -1;
    std::vector<uint32_t> bits;
    for (int i : r.starting) {
        const int prompt = r.done[r.slot[i].completion].prompt;
        if (prompt != of) bits = seen_bits(prompts[prompt], m.V());
        of = prompt;
        copy_to_device(s.seen.data + i * bits.size(), bits.data(), bits.size() * sizeof(uint32_t), m.dev);
    }
}

// The first token of every starting sample, from its prompt's last hidden state; drawn into s.drawn
inline void rollout_draw_first(Model& m, RolloutState& s, const RolloutSlots& r, const RolloutConfig& config) {
    Batch b;  // only its draws and slots
    std::vector<int> rows;
    for (int i : r.starting) {
        rows.push_back(r.slot[i].region);
        b.draws.push_back(r.draw_key(i, config));
        if (sampling_penalizes(config.sampling)) b.slots.push_back(i);
    }
    copy_to_device(s.index.data, rows.data(), rows.size() * sizeof(int), m.dev);
    gather_rows(s.hidden.data, s.last.data, s.index.data, (int64_t)rows.size(), m.C(), m.dev);
    draw_tokens(m, s, s.hidden.data, batch_view(s.decode, b, m.dev), (int64_t)rows.size(), config);
}

// Appends what was drawn for the running and then the starting samples; slots and regions of those that end are free
// again. False: on_token wants no more.
inline bool rollout_take(RolloutSlots& r, const std::vector<int>& tokens, const std::vector<float>& logps,
                         const RolloutConfig& config, const std::function<bool(int, int)>& on_token,
                         const std::function<void(const Completion&)>& on_end) {
    std::vector<int> active = std::move(r.running);
    active.insert(active.end(), r.starting.begin(), r.starting.end());
    r.running.clear();
    bool more = true;
    for (size_t k = 0; k < active.size(); k++) {
        RolloutSlots::Slot& slot = r.slot[active[k]];
        Completion& c = r.done[slot.completion];
        c.tokens.push_back(tokens[k]);
        c.logps.push_back(logps[k]);
        r.stats.completion_tokens++;
        c.stop_token =
            std::find(config.stop_tokens.begin(), config.stop_tokens.end(), tokens[k]) != config.stop_tokens.end();
        c.finished = c.stop_token || stop_strings_take(config.stop_strings, slot.tail, tokens[k]);
        if (on_token && !on_token(slot.completion, tokens[k])) more = false;
        if (!c.finished && (int)c.tokens.size() < config.max_completion_length) {
            r.running.push_back(active[k]);
            continue;
        }
        if (--r.region_left[slot.region] == 0) r.region_of[r.region_prompt[slot.region]] = -1;
        slot.completion = -1;
        if (on_end) on_end(c);
    }
    return more;
}

// on_token(completion index, token) is called after each draw; returning false ends the rollout early (the completions
// are then incomplete); on_end(completion) once it is complete. prompts[p] must not be empty.
inline std::vector<Completion> rollout(Model& m, RolloutState& s, const std::vector<std::vector<int>>& prompts, int G,
                                       const RolloutConfig& config, RolloutStats* stats = nullptr,
                                       const std::function<bool(int, int)>& on_token = nullptr,
                                       const std::function<void(const Completion&)>& on_end = nullptr) {
    NVTX_RANGE("rollout");
    auto start_time = std::chrono::steady_clock::now();
    const int P = (int)prompts.size();
    if (P * G == 0) return {};
    RolloutSlots r;
    r.G = G;
    r.pass = config.pass;
    r.longest = rollout_check(prompts, m, config);
    const RolloutShape shape = rollout_shape(P, G, r.longest, config);
    if (!rollout_fits(s.shape, shape)) rollout_allocate(s, m, rollout_larger(s.shape, shape));
    rope_extend(m.rope, (int)r.longest + config.max_completion_length, m.dev);
    r.slot.resize(shape.slots);
    r.region_of.resize(P, -1);
    r.region_left.resize(shape.regions, 0);
    r.region_prompt.resize(shape.regions, -1);
    r.done.resize((size_t)P * G);

    {
        Progress reading("reading", "prompt", shape.regions, ProgressKind::part);
        r.reading = &reading;
        rollout_fill(m, s, r, prompts);
        r.reading = nullptr;
    }
    for (bool more = true; more;) {
        if (r.running.empty() && r.starting.empty()) break;
        std::vector<int> tokens;
        std::vector<float> logps;
        if (!r.running.empty()) {
            Batch b = rollout_batch(r, prompts, config);
            decode_step(m, s, b, config);
            fetch_drawn(s, (int64_t)r.running.size(), tokens, logps, m.dev);
        }
        if (!r.starting.empty()) {
            if (sampling_penalizes(config.sampling)) rollout_start_seen(m, s, r, prompts);
            rollout_draw_first(m, s, r, config);
            fetch_drawn(s, (int64_t)r.starting.size(), tokens, logps, m.dev);
        }
        more = rollout_take(r, tokens, logps, config, on_token, on_end);
        if (more) rollout_fill(m, s, r, prompts);
    }
    if (stats) {
        stats->prompt_tokens += r.stats.prompt_tokens;
        stats->completion_tokens += r.stats.completion_tokens;
        stats->seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_time).count();
    }
    return std::move(r.done);
}
