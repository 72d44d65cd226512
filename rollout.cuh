// Rollout: sample G completions of each of P prompts in one batch, over a KV cache, through the very forward the
// trainer uses (model_forward), so that a sampled token's log-probability is the trainer's to the last bit.
//
// A prompt is run once and its keys and values are shared by its G samples (place 0 of the cache); every sample owns a
// slot of the cache for its own tokens (place 1). Slots are refilled as samples end (continuous batching), so that
// --rollout_batch bounds the memory whatever P x G is. Which slot or batch a sample runs in does not change its tokens:
// the draw is keyed by (seed, step, prompt, sample, token) and the forward is batch invariant.
#pragma once
#include <chrono>
#include <functional>
#include <vector>
#include "kernels/sampling.cuh"
#include "model.cuh"
#include "model/decode_graph.cuh"

struct RolloutConfig {
    SamplingParams sampling;
    int max_completion_length = 256;
    std::vector<int> stop_tokens;
    int n_allowed = 0;        // ids the tokenizer knows; padded rows of the vocabulary lie above
    int max_sequences = 256;  // slots decoded at once
    int prefill_tokens = 4096;
    uint64_t seed = 0;
    uint32_t stream = RNG_SAMPLE, step = 0;  // with prompt, sample and token: the key of a draw
    int first_prompt = 0;                    // number of the first prompt among those of all ranks
};

struct Completion {
    int prompt = 0, sample = 0;
    std::vector<int> tokens;   // the stop token included
    std::vector<float> logps;  // of each token under the whole softmax at the sampling temperature
    bool finished = false;     // ended with a stop token
};

struct RolloutStats {
    int64_t prompt_tokens = 0, completion_tokens = 0;
    double seconds = 0.0;
};

// What a rollout needs room for
struct RolloutShape {
    int slots = 0;                          // sequences decoded at once
    int64_t prompt_rows = 0, own_rows = 0;  // of the cache: prompts, and the slots' own tokens
    int64_t tokens = 0;                     // of one forward
    int regions = 0;                        // prompts held at once
};

// P prompts of at most `longest` tokens, G samples each
inline RolloutShape rollout_shape(int P, int G, int64_t longest, const RolloutConfig& c) {
    RolloutShape s;
    s.slots = (int)std::min<int64_t>((int64_t)P * G, c.max_sequences);
    // a slow sample keeps its prompt's keys alive while later prompts start: allow twice the least number of prompts
    s.regions = std::min(P, 2 * ((s.slots + G - 1) / G) + 1);
    s.prompt_rows = s.regions * longest;
    s.own_rows = (int64_t)s.slots * c.max_completion_length;
    s.tokens = std::max<int64_t>({s.slots, c.prefill_tokens, longest});
    return s;
}

inline RolloutShape rollout_larger(const RolloutShape& a, const RolloutShape& b) {
    return {std::max(a.slots, b.slots), std::max(a.prompt_rows, b.prompt_rows), std::max(a.own_rows, b.own_rows),
            std::max(a.tokens, b.tokens), std::max(a.regions, b.regions)};
}

inline bool rollout_fits(const RolloutShape& have, const RolloutShape& need) {
    return have.slots >= need.slots && have.prompt_rows >= need.prompt_rows && have.own_rows >= need.own_rows &&
           have.tokens >= need.tokens && have.regions >= need.regions;
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
    DecodeGraphs graphs;
    static constexpr int64_t logit_rows = 128;
};

inline void rollout_allocate(RolloutState& s, const Model& m, const RolloutShape& shape) {
    s.shape = shape;
    s.graphs.clear();
    for (int place : {0, 1}) {
        const char* hint = place ? "lower --rollout_batch or --max_completion_length" : "lower --rollout_batch";
        std::string what = place ? "KV cache of the samples" : "KV cache of the prompts";
        if (m.kv_cache.on()) what += ", " + quantizer_text(m.kv_cache, "token");
        kv_cache_allocate(s.cache, m, place, place ? shape.own_rows : shape.prompt_rows, what.c_str(), hint);
    }
    activations_allocate(s.acts, m, shape.tokens, ActivationMode::inference);
    batch_memory_allocate(s.decode, shape.slots, m.dev);
    s.hidden.allocate((size_t)shape.slots * m.C(), "hidden states of generation", "", m.dev);
    s.last.allocate((size_t)shape.regions * m.C(), "hidden states of generation", "", m.dev);
    s.logits.allocate((size_t)std::min<int64_t>(shape.slots, RolloutState::logit_rows) * m.V(), "a block of logits", "",
                      m.dev);
    s.index.allocate(shape.slots, "hidden states of generation", "", m.dev);
    s.drawn.allocate(2 * (size_t)shape.slots, "hidden states of generation", "", m.dev);
    pinned_allocate(s.drawn_host, 2 * (size_t)shape.slots * sizeof(int), m.dev);
}

// One token for each of n rows of hidden: logits of a block of rows, then the draw. keys [n]; results in s.drawn
inline void draw_tokens(Model& m, RolloutState& s, const floatX* hidden, const DrawKey* keys, int64_t n,
                        const RolloutConfig& config) {
    NVTX_RANGE("sample");
    const int64_t C = m.C(), V = m.V();
    float* logps = reinterpret_cast<float*>(s.drawn.data + s.shape.slots);
    for (int64_t first = 0; first < n; first += RolloutState::logit_rows) {
        int64_t rows = std::min<int64_t>(RolloutState::logit_rows, n - first);
        if (m.packed && !m.dev.cuda)
            gemm_nt_packed(s.logits.data, hidden + first * C, m.generation_head, nullptr, rows);
        else matmul_nt(s.logits.data, V, hidden + first * C, C, m.w.head, C, (const floatX*)nullptr, rows, V, C, m.dev);
        sample_rows(s.drawn.data + first, logps + first, s.logits.data, rows, V, config.n_allowed, config.sampling,
                    DrawStream{config.seed, config.stream}, keys + first, m.dev);
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
// first use and replayed from then on: a step launches some 15 kernels a layer, which cost more to launch one by one
// than to run at the sizes of generation.
inline void decode_step(Model& m, RolloutState& s, Batch& b, const RolloutConfig& config) {
    NVTX_RANGE("decode_step");
    auto step = [&](const BatchView& v) {
        model_forward_view(m, s.acts, v, &s.cache);
        draw_tokens(m, s, s.acts.hidden, v.draws, v.T, config);
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
        BatchView v = batch_view(s.decode, b, m.dev);
        v.most_keys = CEIL_DIV(v.most_keys, DecodeGraphs::keys_step) * DecodeGraphs::keys_step;
        DecodeGraphKey key = {v.T,         v.most_keys,   m.packed && m.quantize, config.sampling,
                              config.seed, config.stream, config.n_allowed};
        decode_graph_run(s.graphs, key, m.dev, [&] { step(v); });
        return;
    }
#endif
    step(batch_view(s.decode, b, m.dev));
}

// on_token(completion index, token) is called after each draw; returning false ends the rollout early (the completions
// are then incomplete). prompts[p] must not be empty.
inline std::vector<Completion> rollout(Model& m, RolloutState& s, const std::vector<std::vector<int>>& prompts, int G,
                                       const RolloutConfig& config, RolloutStats* stats = nullptr,
                                       const std::function<bool(int, int)>& on_token = nullptr) {
    NVTX_RANGE("rollout");
    auto start_time = std::chrono::steady_clock::now();
    const int P = (int)prompts.size(), total = P * G, C = m.C();
    std::vector<Completion> done(total);
    if (total == 0) return done;
    int64_t longest = 0;
    for (const std::vector<int>& p : prompts) {
        if (p.empty())
            fail("a prompt has no tokens; give at least one (a beginning-of-text token, or a prompt template)");
        longest = std::max(longest, (int64_t)p.size());
    }
    if (longest + config.max_completion_length > m.config.max_position_embeddings)
        fail("a prompt of %lld tokens and --max_completion_length %d exceed the model's context of %d; shorten one",
             (long long)longest, config.max_completion_length, m.config.max_position_embeddings);
    const RolloutShape shape = rollout_shape(P, G, longest, config);
    const int slots = shape.slots, max_new = config.max_completion_length, regions = shape.regions;
    if (!rollout_fits(s.shape, shape)) rollout_allocate(s, m, rollout_larger(s.shape, shape));
    rope_extend(m.rope, (int)longest + max_new, m.dev);

    struct Slot {
        int completion = -1, region = 0;
    };
    std::vector<Slot> slot(slots);
    std::vector<int> region_of(P, -1), region_left(regions, 0), region_prompt(regions, -1);
    std::vector<int> starting, running;  // slots of this step: those with a prompt just run, and those with a new token
    int next = 0;                        // next completion to start, in the order prompt by prompt
    int64_t prompt_tokens = 0, completion_tokens = 0;
    auto draw_key = [&](int i) {
        const Completion& c = done[slot[i].completion];
        return DrawKey{config.step, (uint32_t)((config.first_prompt + c.prompt) * G + c.sample), (uint32_t)c.tokens.size()};
    };

    for (;;) {
        // fill free slots; prompts not yet in the cache are run together, up to prefill_tokens at a time
        starting.clear();
        Batch prefill;
        std::vector<int> prefill_regions;
        auto run_prefill = [&]() {
            if (prefill.tokens.empty()) return;
            model_forward(m, s.acts, prefill, &s.cache);
            for (size_t i = 0; i < prefill_regions.size(); i++)
                copy_on_device(s.last.data + (int64_t)prefill_regions[i] * C,
                               s.acts.hidden + (int64_t)(prefill.starts[i + 1] - 1) * C, C * sizeof(floatX), m.dev);
            prompt_tokens += prefill.T();
            prefill = Batch();
            prefill_regions.clear();
        };
        for (int i = 0; i < slots && next < total; i++) {
            if (slot[i].completion >= 0) continue;
            int p = next / G;
            if (region_of[p] < 0) {
                int r = 0;
                while (r < regions && region_left[r] > 0) r++;
                if (r == regions) break;  // every region is in use: wait for a prompt's last sample
                const std::vector<int>& tokens = prompts[p];
                if (prefill.T() + (int64_t)tokens.size() > s.acts.capacity) run_prefill();
                batch_add_sequence(prefill, tokens.data(), (int)tokens.size());
                for (size_t j = 0; j < tokens.size(); j++) prefill.writes.push_back({0, r * longest + (int64_t)j});
                prefill_regions.push_back(r);
                region_of[p] = r;
                region_left[r] = G;
                region_prompt[r] = p;
            }
            done[next].prompt = p;
            done[next].sample = next % G;
            slot[i].completion = next++;
            slot[i].region = region_of[p];
            starting.push_back(i);
        }
        run_prefill();
        if (running.empty() && starting.empty()) break;

        // one token forward for the running ones, and the next drawn; the first drawn for the others
        std::vector<int> tokens;
        std::vector<float> logps;
        if (!running.empty()) {
            Batch b;
            for (int i : running) {
                const Completion& c = done[slot[i].completion];
                const int n = (int)c.tokens.size(), prompt_length = (int)prompts[c.prompt].size();
                KeyRange range;
                range.row0 = (int64_t)slot[i].region * longest;
                range.n0 = prompt_length;
                range.row1 = (int64_t)i * max_new;
                range.n1 = n;
                b.tokens.push_back(c.tokens.back());
                b.positions.push_back(prompt_length + n - 1);
                b.ranges.push_back(range);
                b.writes.push_back({1, range.row1 + n - 1});
                b.draws.push_back(draw_key(i));
            }
            decode_step(m, s, b, config);
            fetch_drawn(s, (int64_t)running.size(), tokens, logps, m.dev);
        }
        if (!starting.empty()) {
            Batch b;  // only its draws
            std::vector<int> rows;
            for (int i : starting) {
                rows.push_back(slot[i].region);
                b.draws.push_back(draw_key(i));
            }
            copy_to_device(s.index.data, rows.data(), rows.size() * sizeof(int), m.dev);
            gather_rows(s.hidden.data, s.last.data, s.index.data, (int64_t)rows.size(), C, m.dev);
            draw_tokens(m, s, s.hidden.data, batch_view(s.decode, b, m.dev).draws, (int64_t)rows.size(), config);
            fetch_drawn(s, (int64_t)rows.size(), tokens, logps, m.dev);
        }
        std::vector<int> active = running;
        active.insert(active.end(), starting.begin(), starting.end());

        running.clear();
        bool stop = false;
        for (size_t k = 0; k < active.size(); k++) {
            int i = active[k], token = tokens[k];
            Completion& c = done[slot[i].completion];
            c.tokens.push_back(token);
            c.logps.push_back(logps[k]);
            completion_tokens++;
            c.finished =
                std::find(config.stop_tokens.begin(), config.stop_tokens.end(), token) != config.stop_tokens.end();
            if (on_token && !on_token(slot[i].completion, token)) stop = true;
            if (!c.finished && (int)c.tokens.size() < max_new) {
                running.push_back(i);
                continue;
            }
            int r = slot[i].region;
            if (--region_left[r] == 0) region_of[region_prompt[r]] = -1;
            slot[i].completion = -1;
        }
        if (stop) break;
    }
    if (stats) {
        stats->prompt_tokens += prompt_tokens;
        stats->completion_tokens += completion_tokens;
        stats->seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_time).count();
    }
    return done;
}
