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

struct RolloutConfig {
    SamplingParams sampling;
    int max_completion_length = 256;
    std::vector<int> stop_tokens;
    int n_allowed = 0;        // ids the tokenizer knows; padded rows of the vocabulary lie above
    int max_sequences = 256;  // slots decoded at once
    int prefill_tokens = 4096;
    uint64_t seed = 0;
    uint32_t stream = RNG_SAMPLE, step = 0;  // with prompt, sample and token: the key of a draw
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

// memory that stays from one rollout to the next
struct RolloutState {
    KVCache cache;
    Activations acts;
    Buffer<float> logits;         // [rows, V]
    Buffer<floatX> hidden, last;  // [slots, C] of this step; [regions, C] of each prompt's last token
    static constexpr int64_t logit_rows = 128;
};

inline void kv_cache_allocate(KVCache& c, const Model& m, int place, int64_t rows, const char* hint) {
    c.width = (int64_t)m.NKV() * m.HD();
    if (rows <= c.rows[place]) return;
    c.rows[place] = rows;
    c.k[place].allocate((size_t)(m.L() * rows * c.width), "the KV cache (keys)", hint);
    c.v[place].allocate((size_t)(m.L() * rows * c.width), "the KV cache (values)", hint);
}

// on_token(completion index, token) is called after each draw; returning false ends the rollout early (the completions
// are then incomplete). prompts[p] must not be empty.
inline std::vector<Completion> rollout(Model& m, RolloutState& s, const std::vector<std::vector<int>>& prompts, int G,
                                       const RolloutConfig& config, RolloutStats* stats = nullptr,
                                       const std::function<bool(int, int)>& on_token = nullptr) {
    auto start_time = std::chrono::steady_clock::now();
    const int P = (int)prompts.size(), total = P * G, C = m.C(), V = m.V();
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
    const int slots = std::min(total, config.max_sequences), max_new = config.max_completion_length;
    // a slow sample keeps its prompt's keys alive while later prompts start: allow twice the least number of prompts
    const int regions = std::min(P, 2 * ((slots + G - 1) / G) + 1);
    kv_cache_allocate(s.cache, m, 0, regions * longest, "lower --rollout_batch");
    kv_cache_allocate(s.cache, m, 1, (int64_t)slots * max_new, "lower --rollout_batch or --max_completion_length");
    int64_t capacity = std::max<int64_t>({slots, config.prefill_tokens, longest});
    if (s.acts.capacity < capacity) activations_allocate(s.acts, m, capacity, ActivationMode::inference);
    s.hidden.reserve((size_t)slots * C, "hidden states");
    s.last.reserve((size_t)regions * C, "hidden states");
    s.logits.reserve((size_t)std::min<int64_t>(slots, RolloutState::logit_rows) * V, "a block of logits");

    struct Slot {
        int completion = -1, region = 0;
    };
    std::vector<Slot> slot(slots);
    std::vector<int> region_of(P, -1), region_left(regions, 0), region_prompt(regions, -1);
    std::vector<int> starting, running;  // slots of this step: those with a prompt just run, and those with a new token
    int next = 0;                        // next completion to start, in the order prompt by prompt
    int64_t prompt_tokens = 0, completion_tokens = 0;
    std::vector<std::vector<float>> scratch;
#if defined(_OPENMP)
    scratch.resize(omp_get_max_threads());
#else
    scratch.resize(1);
#endif

    for (;;) {
        // fill free slots; prompts not yet in the cache are run together, up to prefill_tokens at a time
        starting.clear();
        Batch prefill;
        std::vector<int> prefill_regions;
        auto run_prefill = [&]() {
            if (prefill.tokens.empty()) return;
            model_forward(m, s.acts, prefill, &s.cache);
            for (size_t i = 0; i < prefill_regions.size(); i++)
                memcpy(s.last.data + (int64_t)prefill_regions[i] * C,
                       s.acts.hidden + (int64_t)(prefill.starts[i + 1] - 1) * C, C * sizeof(floatX));
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
                int64_t first_row = (int64_t)r * longest;
                if (prefill.starts.empty()) prefill.starts.push_back(0);
                for (size_t j = 0; j < tokens.size(); j++) {
                    KeyRange range;
                    range.row0 = first_row;
                    range.n0 = (int)j + 1;
                    prefill.tokens.push_back(tokens[j]);
                    prefill.positions.push_back((int)j);
                    prefill.ranges.push_back(range);
                    prefill.writes.push_back({0, first_row + (int64_t)j});
                }
                prefill.starts.push_back((int)prefill.T());
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

        // one token forward for the others
        Batch b;
        if (!running.empty()) {
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
            }
            model_forward(m, s.acts, b, &s.cache);
            memcpy(s.hidden.data, s.acts.hidden, running.size() * C * sizeof(floatX));
        }
        std::vector<int> active = running;
        for (int i : starting) {
            memcpy(s.hidden.data + (int64_t)active.size() * C, s.last.data + (int64_t)slot[i].region * C,
                   C * sizeof(floatX));
            active.push_back(i);
        }
        if (active.empty()) break;

        // logits, draw
        const float inverse = config.sampling.temperature > 0.0f ? 1.0f / config.sampling.temperature : 1.0f;
        for (size_t first = 0; first < active.size(); first += RolloutState::logit_rows) {
            int64_t rows = std::min<int64_t>(RolloutState::logit_rows, (int64_t)(active.size() - first));
            if (m.packed)
                gemm_nt_packed(s.logits.data, s.hidden.data + (int64_t)first * C, m.packed_head, nullptr, rows);
            else gemm_nt(s.logits.data, s.hidden.data + (int64_t)first * C, m.w.head, nullptr, rows, V, C);
#pragma omp parallel for schedule(dynamic, 1)
            for (int64_t i = 0; i < rows; i++) {
                Completion& c = done[slot[active[first + i]].completion];
                const float* logits = s.logits.data + i * V;
                int thread = 0;
#if defined(_OPENMP)
                thread = omp_get_thread_num();
#endif
                float u = uniform01(rng_bits(config.seed, config.stream, config.step,
                                             (uint32_t)(c.prompt * G + c.sample), (uint32_t)c.tokens.size())
                                        .x[0]);
                int token = sample_row(logits, config.n_allowed, config.sampling, u, scratch[thread]);
                c.logps.push_back(logit_logp(logits[token], inverse, softmax_lse(softmax_row(logits, V, inverse))));
                c.tokens.push_back(token);
            }
        }

        running.clear();
        bool stop = false;
        for (int i : active) {
            Completion& c = done[slot[i].completion];
            int token = c.tokens.back();
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
