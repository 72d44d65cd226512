// The policy losses: every combination of TRL's against TRL's own numbers (golden/grpo_losses.json, make_golden_grpo.py), all
// of them and their gradients against a float64 restatement from the formulas, on every backend; advantages, averages and the
// options that are refused.
#include <cmath>
#include <set>
#include "../commands/loss_options.cuh"
#include "operator_test.h"
#include "test_device.h"

// ---------------------------------------------------------------------------------------------------------------------
// completions without a model

struct LossCase {
    std::vector<Completion> completions;  // logps: the sampler's
    PolicyData data;
    std::vector<std::vector<float>> logp, entropy;  // [N][n] of the trainer now
};

struct LossResult {
    double loss = 0.0;
    std::vector<std::vector<double>> dlogp, dentropy;  // [N][n]
    PolicySums sums;
};

// The completions first ... last - 1 (-1: all) in two calls, whose rows stand as sample_batch puts them: first tokens first
static LossResult run_loss(const LossCase& k, const PolicyPassConfig& c, const Backend& run, int first = 0,
                           int last = -1) {
    select_backend(run);
    const Device dev = run.dev;
    const PolicyTargets x = policy_targets(k.completions, k.data, c, first, last);
    LossResult out;
    out.dlogp.resize(k.completions.size()), out.dentropy.resize(k.completions.size());
    PolicyMemory memory;
    policy_memory_allocate(memory, 1 << 16, dev);
    policy_sums_reset(memory.sums.data, dev);
    std::vector<int> chosen[2];
    for (int i = x.first; i < x.last; i++)
        if (x.lengths[i]) chosen[i % 3 == 0].push_back(i);
    for (const std::vector<int>& some : chosen) {
        SampleBatch b;
        for (size_t t = 0, more = 1; more; t++) {
            more = 0;
            for (int i : some) {
                if (t >= k.logp[i].size()) continue;
                b.of.push_back({i, (int)t}), b.scored.rows.push_back(0), more = 1;
            }
        }
        std::vector<float> logp, entropy;
        for (auto [i, t] : b.of) logp.push_back(k.logp[i][t]), entropy.push_back(k.entropy[i][t]);
        const size_t R = logp.size();
        TestBuffer<float> dlogp(R, dev), dentropy(R, dev), logp_there(logp, dev), entropy_there(entropy, dev);
        const PolicyUse use = {(int64_t)R,          (int64_t)some.size(), !k.data.ref.empty(), !k.data.factor.empty(),
                               !k.data.low.empty(), x.bonus != 0.0};
        PolicyInputs in = policy_inputs(memory, use, dev);
        policy_fill(in, x, b, some);
        in = policy_inputs_send(memory, use, dev);
        policy_loss(memory.sums.data, {logp_there.data, entropy_there.data, dlogp.data, dentropy.data}, in, use.S,
                    c.policy, dev);
        const std::vector<float> d = dlogp.get(), h = dentropy.get();
        for (size_t r = 0; r < R; r++) {
            const auto [i, t] = b.of[r];
            if (t == 0) out.dlogp[i].resize(k.logp[i].size()), out.dentropy[i].resize(k.logp[i].size());
            out.dlogp[i][t] = d[r];
            if (x.bonus != 0.0) out.dentropy[i][t] = h[r];
            else EXPECT_TRUE(still_poison(h[r]));
        }
    }
    copy_to_host(&out.sums, memory.sums.data, sizeof(out.sums), dev);
    out.loss = out.sums.loss;
    return out;
}

// the CPU's loops and the kernels in one order of their threads
static std::vector<Backend> both() {
    std::vector<Backend> runs = all_backends();
    runs.resize(std::min(runs.size(), (size_t)2));
    return runs;
}

static void expect_close(const std::vector<std::vector<double>>& got, const std::vector<std::vector<double>>& want,
                         double tolerance, const std::string& what) {
    double scale = 0.0;
    for (const auto& row : want)
        for (double v : row) scale = std::max(scale, std::fabs(v));
    for (size_t i = 0; i < want.size(); i++) {
        if (want[i].empty()) continue;
        ASSERT_EQ(got[i].size(), want[i].size()) << what << ", completion " << i;
        for (size_t t = 0; t < want[i].size(); t++)
            ASSERT_NEAR(got[i][t], want[i][t], tolerance * std::max(std::fabs(want[i][t]), 1e-3 * scale))
                << what << ", token " << t << " of completion " << i;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// TRL's numbers

static const nlohmann::json& golden() {
    static const nlohmann::json j = nlohmann::json::parse(read_file("test/golden/grpo_losses.json"));
    return j;
}

static std::vector<std::vector<float>> golden_rows(const nlohmann::json& flat) {
    const std::vector<int> lengths = golden()["lengths"];
    const int T = golden()["T"];
    std::vector<std::vector<float>> rows;
    for (size_t i = 0; i < lengths.size(); i++) {
        rows.emplace_back();
        for (int t = 0; t < lengths[i]; t++) rows.back().push_back(flat[i * T + t]);
    }
    return rows;
}
static std::vector<std::vector<double>> doubles(const std::vector<std::vector<float>>& rows) {
    std::vector<std::vector<double>> out;
    for (const auto& row : rows) out.emplace_back(row.begin(), row.end());
    return out;
}

// the flags that a case's options are
static std::vector<std::string> golden_flags(const nlohmann::json& k) {
    std::vector<std::string> flags = {"grpo", "--loss_type", k["loss_type"]};
    for (const auto& [name, value] : k["options"].items()) {
        flags.push_back("--" + name);
        flags.push_back(value.is_string() ? value.get<std::string>() : value.dump());
    }
    return flags;
}

static LossCase golden_case() {
    const nlohmann::json& g = golden();
    LossCase k;
    k.logp = golden_rows(g["logp"]), k.entropy = golden_rows(g["entropy"]);
    const std::vector<std::vector<float>> sampling = golden_rows(g["sampling"]);
    for (size_t i = 0; i < sampling.size(); i++) {
        Completion c;
        c.prompt = (int)i / 4, c.sample = (int)i % 4;
        c.logps = sampling[i], c.tokens.resize(sampling[i].size()), c.finished = true;
        k.completions.push_back(c);
    }
    k.data.advantages = g["advantages"].get<std::vector<float>>();
    k.data.old = golden_rows(g["old"]);
    k.data.drift.resize(k.completions.size());
    for (size_t i = 0; i < sampling.size(); i++)
        for (size_t t = 0; t < sampling[i].size(); t++)
            k.data.drift[i] += ((double)sampling[i][t] - k.data.old[i][t]) / (double)sampling[i].size();
    return k;
}

// what the loss of a case has besides
static void golden_masks(LossCase& k, const nlohmann::json& of, const GrpoConfig& c) {
    const nlohmann::json& g = golden();
    const int N = g["N"], parts = g["parts"];
    if (c.beta > 0.0) k.data.ref = golden_rows(g["ref"]);
    if (of.contains("correction")) {
        k.data.factor.resize(N), k.data.log_correction.resize(N);
        const auto& [mode, most] =
            std::pair<std::string, double>(of["correction"]["mode"], of["correction"]["clip_max"]);
        const double least = of["correction"].value("clip_min", 0.0);
        for (int i = 0; i < N; i++) {
            double sum = 0.0;
            const std::vector<float>&old = k.data.old[i], &sampling = k.completions[i].logps;
            for (size_t t = 0; t < old.size(); t++) sum += (double)old[t] - sampling[t];
            for (size_t t = 0; t < old.size(); t++) {
                double w = std::exp(mode[0] == 's' ? sum : (double)old[t] - sampling[t]);
                if (mode.find("truncate") != std::string::npos) w = std::min(std::max(w, least), most);
                else if (w > most || w < least) w = 0.0;
                k.data.log_correction[i] += std::min(std::max(std::log(w), std::log(1e-8)), 20.0);
                k.data.factor[i].push_back(c.policy.kind == PolicyLoss::vespo ? 1.0f : (float)w);
            }
        }
    }
    if (c.top_entropy_quantile >= 1.0) return;
    for (int part = 0; part < parts; part++) {
        std::vector<int> lengths;
        for (const Completion& d : k.completions) lengths.push_back((int)d.tokens.size());
        high_entropy_tokens(k.data.in_bonus, k.entropy, lengths, c.top_entropy_quantile, part * N / parts,
                            (part + 1) * N / parts);
    }
    if (k.data.factor.empty())
        for (int i = 0; i < N; i++) k.data.factor.emplace_back(k.logp[i].size(), 1.0f);
    for (int i = 0; i < N; i++)
        for (size_t t = 0; t < k.logp[i].size(); t++) k.data.factor[i][t] *= (float)k.data.in_bonus[i][t];
}

TEST(PolicyLossGolden, EveryCombinationIsTrls) {
    std::set<std::string> kinds;
    double worst = 0.0;
    for (const nlohmann::json& of : golden()["cases"]) {
        const std::string name = of["name"];
        Options o = parse_options(golden_flags(of));
        o.gradient_accumulation_steps = golden()["parts"], o.steps_per_generation = golden()["parts"];
        o.max_completion_length = golden()["max_completion_length"];
        grpo_check_loss(o);
        const GrpoConfig c = grpo_config(o);
        kinds.insert(o.loss_type);
        LossCase k = golden_case();
        golden_masks(k, of, c);
        for (const Backend& run : both()) {
            const LossResult got = run_loss(k, c, run);
            const double want = of["loss"];
            EXPECT_NEAR(got.loss, want, 1e-6 * std::fabs(want)) << name << ", " << run.name;
            worst = std::max(worst, std::fabs(got.loss / want - 1.0));
            expect_close(got.dlogp, doubles(golden_rows(of["dlogp"])), 1e-6, name + ", " + run.name);
            if (of.contains("dentropy"))
                expect_close(got.dentropy, doubles(golden_rows(of["dentropy"])), 1e-6, name + " entropy, " + run.name);
        }
    }
    EXPECT_EQ(kinds.size(), 8u);
    printf("losses differ from TRL's by at most %.1e\n", worst);
}

// clip shares, phi and kl as TRL logs them, where one batch makes its mean over batches ours
TEST(PolicyLossGolden, MetricsAreTrls) {
    int seen = 0;
    for (const nlohmann::json& of : golden()["cases"]) {
        Options o = parse_options(golden_flags(of));
        o.gradient_accumulation_steps = golden()["parts"], o.steps_per_generation = golden()["parts"];
        o.max_completion_length = golden()["max_completion_length"];
        const GrpoConfig c = grpo_config(o);
        LossCase k = golden_case();
        golden_masks(k, of, c);
        const int N = golden()["N"], parts = golden()["parts"];
        for (int part = 0; part < parts; part++) {
            const LossResult got = run_loss(k, c, all_backends()[0], part * N / parts, (part + 1) * N / parts);
            const PolicySums& s = got.sums;
            auto check = [&](const char* key, double value) {
                if (!of["metrics"].contains(key)) return;
                EXPECT_NEAR(value, of["metrics"][key][part].get<double>(), 1e-6) << of["name"] << ": " << key;
                seen++;
            };
            check("clip_ratio/low_mean", s.clip_low / s.clip_units);
            check("clip_ratio/low_min", s.clip_low_min);
            check("clip_ratio/high_mean", s.clip_high / s.clip_units);
            check("clip_ratio/high_max", s.clip_high_max);
            check("cispo_clip_ratio", s.clip_high / s.clip_units);
            check("vespo/phi_seq_mean", s.coefficient / s.clip_units);
            check("kl", s.kl / s.tokens);
        }
    }
    EXPECT_GT(seen, 300);
}

// ---------------------------------------------------------------------------------------------------------------------
// from the formulas

// The loss in double from the log-probabilities x [N][n]. What a detached loss takes as a number comes from `at`.
static double restated(const LossCase& k, const GrpoConfig& c, const std::vector<std::vector<double>>& x,
                       const std::vector<std::vector<double>>& h, const std::vector<std::vector<double>>& at) {
    const PolicyConfig& p = c.policy;
    const int N = (int)x.size();
    double loss = 0.0, tokens = 0.0, counted = 0.0;
    std::vector<double> n(N);
    for (int i = 0; i < N; i++) n[i] = c.mask_truncated && !k.completions[i].finished ? 0.0 : (double)x[i].size();
    for (int i = 0; i < N; i++) counted += n[i];
    for (int i = 0; i < N; i++) {
        if (n[i] == 0.0) continue;
        const std::vector<float>& old = k.data.old.empty() ? k.completions[i].logps : k.data.old[i];
        const double A = k.data.advantages[i];
        double mean = 0.0, mean_at = 0.0;
        for (size_t t = 0; t < x[i].size(); t++)
            mean += (x[i][t] - old[t]) / n[i], mean_at += (at[i][t] - old[t]) / n[i];
        const double drift = k.data.drift.empty() ? 0.0 : k.data.drift[i];
        const double keep = A < 0.0 && drift - mean_at > p.drop_above ? 0.0 : 1.0;
        for (size_t t = 0; t < x[i].size(); t++) {
            const double rho = std::exp(p.sequence ? mean : x[i][t] - old[t]);
            const double rho_at = std::exp(p.sequence ? mean_at : at[i][t] - old[t]);
            const double low = k.data.low.empty() ? p.low : k.data.low[i][t],
                         high = k.data.high.empty() ? p.high : k.data.high[i][t];
            double l = 0.0;
            if (p.kind == PolicyLoss::clip)
                l = -std::min(std::min(rho, p.delta) * A, std::min(std::max(rho, low), high) * A);
            if (p.kind == PolicyLoss::trust_band)
                l = A < 0.0 ? -std::min(std::max(rho, low), high) * A : -std::min(rho, high) * A;
            if (p.kind == PolicyLoss::cispo) l = -std::min(rho_at, high) * A * x[i][t];
            if (p.kind == PolicyLoss::sapo) {
                const double tau = A > 0.0 ? p.sapo_temperature_pos : p.sapo_temperature_neg;
                l = -4.0 / tau / (1.0 + std::exp(-tau * (rho - 1.0))) * A;
            }
            if (p.kind == PolicyLoss::vespo) {
                const double K = A >= 0.0 ? p.vespo_k_pos : p.vespo_k_neg,
                             L = A >= 0.0 ? p.vespo_lambda_pos : p.vespo_lambda_neg;
                double log_w = mean_at * n[i] + (k.data.log_correction.empty() ? 0.0 : k.data.log_correction[i]);
                log_w = std::min(std::max(log_w, std::log(1e-8)), 20.0);
                l = -std::exp(L) * std::pow(std::exp(log_w), K) * std::exp(-L * std::exp(log_w)) * A * x[i][t];
            }
            l *= keep * (k.data.factor.empty() ? 1.0 : (double)k.data.factor[i][t]);
            if (p.beta > 0.0) {
                const double y = k.data.ref[i][t] - x[i][t];
                const double kl = p.kl == KlEstimator::k1   ? -y
                                  : p.kl == KlEstimator::k2 ? y * y / 2
                                                            : std::exp(y) - y - 1;
                l += p.beta * kl * (p.kl_times_ratio ? rho : 1.0);
            }
            const double w = c.aggregation == LossAggregation::seq_mean_token_mean  ? 1.0 / (N * n[i])
                             : c.aggregation == LossAggregation::seq_mean_token_sum ? 1.0 / N
                             : c.aggregation == LossAggregation::seq_mean_token_sum_norm
                                 ? 1.0 / (N * c.max_completion_length)
                                 : 1.0 / counted;
            loss += w * l;
            tokens += k.data.in_bonus.empty() || k.data.in_bonus[i][t];
        }
    }
    for (int i = 0; i < N; i++)
        for (size_t t = 0; t < h[i].size() && n[i] > 0.0; t++)
            if (k.data.in_bonus.empty() || k.data.in_bonus[i][t]) loss -= c.entropy_coef * h[i][t] / tokens;
    return loss;
}

static LossCase made_up(int N, int longest, uint32_t seed) {
    LossCase k;
    for (int i = 0; i < N; i++) {
        const int n = 1 + (int)(rng_bits(seed, RNG_INIT, 1, (uint32_t)i, 0).x[0] % (uint32_t)longest);
        auto numbers = [&](uint32_t what, float scale) {
            std::vector<float> v = random_values<float>(n, seed * 1000 + what * 100 + (uint32_t)i);
            for (float& f : v) f *= scale;
            return v;
        };
        auto near = [&](const std::vector<float>& v, uint32_t what, float scale) {
            std::vector<float> u = numbers(what, scale);
            for (int t = 0; t < n; t++) u[t] += v[t];
            return u;
        };
        k.logp.push_back(numbers(2, 2.0f));
        k.entropy.push_back(numbers(3, 1.0f));
        k.data.old.push_back(near(k.logp[i], 4, 0.6f));
        k.data.ref.push_back(near(k.logp[i], 5, 0.8f));
        Completion c;
        c.logps = near(k.data.old[i], 6, 0.3f), c.tokens.resize(n), c.finished = i % 4 != 1, c.prompt = i / 3;
        k.completions.push_back(c);
        k.data.advantages.push_back(i % 5 == 3 ? 0.0f : random_values<float>(N, seed, 2.0f)[i]);
        double drift = 0.0, log_correction = 0.0;
        k.data.factor.emplace_back(), k.data.in_bonus.emplace_back();
        for (int t = 0; t < n; t++) {
            drift += ((double)c.logps[t] - k.data.old[i][t]) / n;
            const double w = std::min(std::exp((double)k.data.old[i][t] - c.logps[t]), 1.1);
            log_correction += std::log(w);
            k.data.factor[i].push_back(t % 4 == 2 ? 0.0f : (float)w);
            k.data.in_bonus[i].push_back(t % 3 != 1);
        }
        k.data.drift.push_back(drift), k.data.log_correction.push_back(log_correction);
    }
    return k;
}

// one combination, its gradient by central differences of the restatement
static void check_combination(const LossCase& k, const GrpoConfig& c, const std::string& what) {
    std::vector<std::vector<double>> x = doubles(k.logp), h = doubles(k.entropy), dlogp(x.size()), dentropy(x.size());
    const std::vector<std::vector<double>> at = x;
    const double want = restated(k, c, x, h, at), step = 1e-5;
    for (size_t i = 0; i < x.size(); i++) {
        if (c.mask_truncated && !k.completions[i].finished) continue;
        for (auto [values, slopes] : {std::pair(&x, &dlogp), std::pair(&h, &dentropy)})
            for (double& v : (*values)[i]) {
                const double before = v;
                v = before + step;
                const double up = restated(k, c, x, h, at);
                v = before - step;
                const double down = restated(k, c, x, h, at);
                v = before;
                (*slopes)[i].push_back((up - down) / (2 * step));
            }
    }
    for (const Backend& run : both()) {
        const LossResult got = run_loss(k, c, run);
        EXPECT_NEAR(got.loss, want, 1e-6 * std::max(std::fabs(want), 1e-2)) << what << ", " << run.name;
        expect_close(got.dlogp, dlogp, 1e-5, what + ", " + run.name);
        if (c.entropy_coef != 0.0) expect_close(got.dentropy, dentropy, 1e-5, what + " entropy, " + run.name);
    }
}

TEST(PolicyLoss, EveryCombinationIsItsFormula) {
    int combinations = 0;
    for (const std::string loss : policy_loss_names)
        for (bool sequence : {false, true})
            for (const char* aggregation : loss_aggregation_names)
                for (int more = 0; more < 6; more++) {
                    if (std::string(aggregation) == "micro-batch-token-mean") continue;  // one part: token-mean
                    GrpoConfig c;
                    c.policy.kind = policy_loss_named(loss), c.policy.sequence = sequence;
                    c.aggregation = loss_aggregation_named(aggregation);
                    c.policy.low = sequence ? 0.93 : 0.8, c.policy.high = sequence ? 1.05 : 1.3;
                    c.max_completion_length = 31;
                    LossCase k = made_up(7, more == 3 ? 150 : 12, 3 + (uint32_t)more);
                    if (more != 1) k.data.factor.clear(), k.data.log_correction.clear();
                    if (more == 2 || more == 5) {
                        c.policy.beta = 0.3, c.policy.kl = (KlEstimator)(combinations % 3);
                        c.policy.kl_times_ratio = more == 5;
                    } else {
                        k.data.ref.clear();
                    }
                    if (more == 3) c.entropy_coef = 0.05, c.mask_truncated = true;
                    if (more != 3 || sequence) k.data.in_bonus.clear();
                    if (more == 4) c.policy.drop_above = 0.02;
                    if (more == 4 && loss == "clip") c.policy.delta = 1.1;
                    if (more == 0) k.data.old.clear(), k.data.drift.clear();
                    if (more == 1 && !sequence)  // ranges of their own
                        for (size_t i = 0; i < k.logp.size(); i++) {
                            k.data.low.emplace_back(k.logp[i].size(), 0.85f);
                            k.data.high.emplace_back(k.logp[i].size(), i % 2 ? 1.1f : 1.4f);
                        }
                    check_combination(k, c,
                                      loss + (sequence ? " sequence " : " token ") + aggregation + format(" %d", more));
                    combinations++;
                }
    EXPECT_EQ(combinations, 240);
}

// rows that end a block, and the sums that are logged; the three orders of simulated threads have the same bits
TEST(PolicyLoss, LongSequencesAndSumsOnEveryBackend) {
    LossCase k = made_up(5, 400, 77);
    GrpoConfig c;
    c.policy.beta = 0.04;
    PolicySums want;
    for (size_t i = 0; i < k.logp.size(); i++) {
        double low = 0.0, high = 0.0;
        for (size_t t = 0; t < k.logp[i].size(); t++) {
            const double d = (double)k.logp[i][t] - k.data.old[i][t], rho = std::exp(d), A = k.data.advantages[i];
            const double y = (double)k.data.ref[i][t] - k.logp[i][t];
            want.kl += std::exp(y) - y - 1, want.entropy += k.entropy[i][t];
            want.logp_difference += std::fabs(d),
                want.logp_difference_max = std::max(want.logp_difference_max, std::fabs(d));
            want.ratio += rho, want.ratio_min = std::min(want.ratio_min, rho),
                               want.ratio_max = std::max(want.ratio_max, rho);
            low += rho < 0.8 && A<0.0, high += rho> 1.2 && A > 0.0, want.tokens += 1.0;
        }
        want.clip_low += low, want.clip_high += high;
        want.clip_low_min = std::min(want.clip_low_min, low / (double)k.logp[i].size());
        want.clip_high_max = std::max(want.clip_high_max, high / (double)k.logp[i].size());
    }
    EXPECT_TRUE(want.clip_low > 0.0 && want.clip_high > 0.0);
    std::vector<LossResult> results;
    for (const Backend& run : all_backends()) {
        results.push_back(run_loss(k, c, run));
        const PolicySums& s = results.back().sums;
        for (double PolicySums::*x :
             {&PolicySums::kl, &PolicySums::entropy, &PolicySums::logp_difference, &PolicySums::logp_difference_max,
              &PolicySums::ratio, &PolicySums::ratio_min, &PolicySums::ratio_max, &PolicySums::clip_low,
              &PolicySums::clip_high, &PolicySums::clip_low_min, &PolicySums::clip_high_max, &PolicySums::tokens})
            EXPECT_NEAR(s.*x, want.*x, 1e-6 * std::max(std::fabs(want.*x), 1e-3)) << run.name;
        EXPECT_EQ(s.sequences, 5.0);
    }
    for (size_t r = 2; r < results.size(); r++) {
        EXPECT_EQ(memcmp(&results[1].sums, &results[r].sums, sizeof(PolicySums)), 0) << "bits differ";
        EXPECT_EQ(results[1].dlogp, results[r].dlogp);
    }
}

TEST(PolicyLoss, FirstPassExtremesAndNan) {
    for (const Backend& run : all_backends()) {
        LossCase k = made_up(4, 20, 5);
        k.logp = k.data.ref = k.data.old;  // the ratio is 1
        k.data.factor.clear(), k.data.log_correction.clear();
        GrpoConfig c;
        c.policy.beta = 0.5;
        double tokens = 0.0, want = 0.0;
        for (size_t i = 0; i < 4; i++)
            tokens += (double)k.logp[i].size(), want -= k.data.advantages[i] * (double)k.logp[i].size();
        LossResult r = run_loss(k, c, run);
        EXPECT_NEAR(r.loss, want / tokens, 1e-12);
        EXPECT_EQ(r.sums.ratio_min, 1.0);
        EXPECT_EQ(r.sums.ratio_max, 1.0);
        EXPECT_EQ(r.sums.kl, 0.0);
        for (size_t i = 0; i < 4; i++)
            for (double d : r.dlogp[i]) EXPECT_FLOAT_EQ((float)d, (float)(-k.data.advantages[i] / tokens));
        for (float far : {-1e4f, -90.0f}) {  // collapsed, and its mirror: large, not infinite
            for (auto& row : k.logp) row.assign(row.size(), far);
            for (auto& row : k.data.old) row.assign(row.size(), 0.0f);
            r = run_loss(k, c, run);
            EXPECT_TRUE(std::isfinite(r.loss) && std::isfinite(r.dlogp[0][0]));
            std::swap(k.logp, k.data.old);
            r = run_loss(k, c, run);
            EXPECT_TRUE(std::isfinite(r.loss) && std::isfinite(r.dlogp[0][0]));
        }
        k.logp[2][0] = NAN;
        EXPECT_TRUE(std::isnan(run_loss(k, c, run).loss)) << run.name;
        k.data.ref.clear();
        EXPECT_THROW(run_loss(k, c, run), Error);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// advantages

TEST(Advantages, ByHand) {
    // group 1: mean 2, n-1 standard deviation 2; group 2: all equal; group 3: one of four correct, std 0.5
    std::vector<float> rewards = {0, 4, 2, 2, 0.1f, 0.1f, 0.1f, 0.1f, 1, 0, 0, 0};
    double s1 = std::sqrt(8.0 / 3.0), s3 = 0.5;
    Advantages a = group_advantages(rewards, 4, RewardScale::group);
    ASSERT_EQ(a.a.size(), rewards.size());
    const double expected[] = {-2 / (s1 + 1e-4),   2 / (s1 + 1e-4),    0, 0, 0, 0, 0, 0,
                               0.75 / (s3 + 1e-4), -0.25 / (s3 + 1e-4)};
    for (int i = 0; i < 10; i++) EXPECT_NEAR(a.a[i], expected[i], 1e-6) << i;
    for (int i = 2; i < 8; i++) EXPECT_EQ(a.a[i], 0.0f) << i;  // exactly: equal rewards teach nothing
    EXPECT_NEAR(a.reward_mean, (8 + 0.4 + 1) / 12, 1e-7);
    EXPECT_NEAR(a.reward_group_std, (s1 + 0 + s3) / 3, 1e-7);
    EXPECT_NEAR(a.zero_std_share, 1.0 / 3, 1e-12);

    Advantages none = group_advantages(rewards, 4, RewardScale::none);
    EXPECT_FLOAT_EQ(none.a[0], -2.0f);
    EXPECT_FLOAT_EQ(none.a[8], 0.75f);
    double mean = 0, variance = 0;
    for (float r : rewards) mean += r / 12.0;
    for (float r : rewards) variance += (r - mean) * (r - mean) / 11.0;
    EXPECT_NEAR(a.reward_std, std::sqrt(variance), 1e-7);
    Advantages batch = group_advantages(rewards, 4, RewardScale::batch);
    EXPECT_NEAR(batch.a[1], 2 / (std::sqrt(variance) + 1e-4), 1e-6);
    EXPECT_NEAR(batch.a[9], -0.25 / (std::sqrt(variance) + 1e-4), 1e-6);
    EXPECT_EQ(batch.a[5], 0.0f);
}

TEST(Advantages, SmallGroupsAndNaN) {
    Advantages one = group_advantages({3.0f, -1.0f}, 1, RewardScale::group);  // no group to compare with
    EXPECT_EQ(one.a, (std::vector<float>{0.0f, 0.0f}));
    Advantages two = group_advantages({0.0f, 1.0f}, 2, RewardScale::group);
    EXPECT_NEAR(two.a[1], 0.5 / (std::sqrt(0.5) + 1e-4), 1e-6);
    EXPECT_FLOAT_EQ(two.a[0], -two.a[1]);
    Advantages bad = group_advantages({0.0f, INFINITY, 1.0f, 2.0f}, 2, RewardScale::group);
    EXPECT_FALSE(std::isfinite(bad.a[0]) || std::isfinite(bad.a[1]));  // its own group, and no other
    EXPECT_TRUE(std::isfinite(bad.a[2]) && std::isfinite(bad.a[3]));
    // NaN: no reward applies to the completion, and the others of its group are compared without it
    Advantages none = group_advantages({0.0f, NAN, 1.0f, 3.0f, 5.0f, NAN}, 3, RewardScale::none);
    EXPECT_EQ(none.a, (std::vector<float>{-0.5f, 0.0f, 0.5f, -1.0f, 1.0f, 0.0f}));
    EXPECT_NEAR(none.reward_mean, 9.0 / 4, 1e-7);
}

// by hand, from the papers' formulas
TEST(Advantages, OtherBaselines) {
    const std::vector<float> r = {1, 0, 0, 0, 1, 1, 0, 1};  // two groups of four
    const Advantages rloo = compute_advantages(r, 4, advantage_estimator("rloo"), RewardScale::none);
    EXPECT_FLOAT_EQ(rloo.a[0], 1.0f);
    EXPECT_FLOAT_EQ(rloo.a[1], -1.0f / 3);
    EXPECT_FLOAT_EQ(rloo.a[6], -1.0f);
    const Advantages batch = compute_advantages(r, 4, advantage_estimator("batch"), RewardScale::batch);
    const double std = std::sqrt(8 * 0.25 / 7);
    EXPECT_NEAR(batch.a[0], 0.5 / (std + 1e-4), 1e-6);
    EXPECT_NEAR(batch.a[1], -0.5 / (std + 1e-4), 1e-6);
    // whitened over tokens: long completions count for more
    const std::vector<int> n = {1, 2, 3, 4, 1, 2, 3, 4};
    for (const char* name : {"reinforce_plus_plus", "reinforce_plus_plus_baseline"}) {
        const Advantages a = compute_advantages(r, 4, advantage_estimator(name), RewardScale::batch, n);
        double mean = 0, squares = 0, raw_mean = 0, raw_squares = 0;
        const double group[2] = {0.25, 0.75};
        auto raw = [&](int i) { return r[i] - (name[19] ? group[i / 4] : 0.0); };
        for (int i = 0; i < 8; i++) mean += n[i] * a.a[i] / 20, raw_mean += n[i] * raw(i) / 20;
        for (int i = 0; i < 8; i++)
            squares += n[i] * a.a[i] * a.a[i] / 19,
                raw_squares += n[i] * (raw(i) - raw_mean) * (raw(i) - raw_mean) / 19;
        EXPECT_NEAR(mean, 0, 1e-6) << name;
        EXPECT_NEAR(squares, 1, 1e-3) << name;
        for (int i = 0; i < 8; i++)
            EXPECT_NEAR(a.a[i], (raw(i) - raw_mean) / (std::sqrt(raw_squares) + 1e-4), 1e-5) << name;
    }
}

// a KL term in the reward: its sum, or by tokens rewards to go
TEST(Advantages, PaymentsOfTokens) {
    const std::vector<float> r = {1, 0};
    const std::vector<std::vector<float>> paid = {{-0.1f, -0.2f}, {0.3f}};
    const Advantages sum = compute_advantages(r, 2, advantage_estimator("rloo"), RewardScale::none, {2, 1}, paid);
    EXPECT_NEAR(sum.a[0], 0.7 - 0.3, 1e-6);
    EXPECT_NEAR(sum.a[1], 0.3 - 0.7, 1e-6);
    EXPECT_FLOAT_EQ((float)sum.reward_mean, 0.5f);  // what is logged is the reward itself
    const Advantages a =
        compute_advantages(r, 2, advantage_estimator("reinforce_plus_plus"), RewardScale::none, {2, 1}, paid);
    ASSERT_EQ(a.tokens[0].size(), 2u);  // 0.7, 0.8 and 0.3, less their mean of 0.6
    EXPECT_NEAR(a.tokens[0][0], 0.1, 1e-6);
    EXPECT_NEAR(a.tokens[0][1], 0.2, 1e-6);
    EXPECT_NEAR(a.tokens[1][0], -0.3, 1e-6);
}

// ---------------------------------------------------------------------------------------------------------------------
// averages, masks and options

TEST(CompletionWeights, EachAverage) {
    const std::vector<int> n = {4, 1, 0, 5, 10};  // the third is masked
    auto sum = [&](LossAggregation type, int parts) {
        std::vector<double> w = completion_weights(n, type, parts, 16);
        double total = 0;  // the loss when every token's loss is 1
        for (size_t i = 0; i < n.size(); i++) total += w[i] * n[i];
        return total;
    };
    std::vector<double> grpo = completion_weights(n, LossAggregation::seq_mean_token_mean, 1, 16);
    for (int i : {0, 1, 3, 4}) EXPECT_DOUBLE_EQ(grpo[i], 1.0 / (5.0 * n[i]));
    EXPECT_NEAR(sum(LossAggregation::seq_mean_token_mean, 1), 0.8, 1e-12);
    std::vector<double> dr = completion_weights(n, LossAggregation::seq_mean_token_sum_norm, 3, 16);
    for (double w : dr) EXPECT_DOUBLE_EQ(w, 1.0 / (5 * 16));
    for (int parts : {1, 2, 5}) {
        std::vector<double> dapo = completion_weights(n, LossAggregation::token_mean, parts, 16);
        for (double w : dapo) EXPECT_DOUBLE_EQ(w, 1.0 / 20);
    }
    EXPECT_NEAR(sum(LossAggregation::token_mean, 2), 1.0, 1e-12);
    // two parts: completions 0-2 with 5 tokens, 3-4 with 15
    std::vector<double> bnpo = completion_weights(n, LossAggregation::micro_batch_token_mean, 2, 16);
    for (int i = 0; i < 3; i++) EXPECT_DOUBLE_EQ(bnpo[i], 1.0 / (2 * 5));
    for (int i = 3; i < 5; i++) EXPECT_DOUBLE_EQ(bnpo[i], 1.0 / (2 * 15));
    EXPECT_NEAR(sum(LossAggregation::micro_batch_token_mean, 2), 1.0, 1e-12);
    for (double w : completion_weights(n, LossAggregation::seq_mean_token_sum, 2, 16)) EXPECT_DOUBLE_EQ(w, 1.0 / 5);
    // one part: bnpo is dapo
    EXPECT_EQ(completion_weights(n, LossAggregation::micro_batch_token_mean, 1, 16),
              completion_weights(n, LossAggregation::token_mean, 1, 16));
    for (LossAggregation type : {LossAggregation::seq_mean_token_mean, LossAggregation::micro_batch_token_mean,
                                 LossAggregation::seq_mean_token_sum_norm, LossAggregation::token_mean})
        for (double w : completion_weights({0, 0}, type, 1, 8)) EXPECT_TRUE(std::isfinite(w));
}

TEST(HighEntropy, ThresholdIsNumpysQuantile) {
    std::vector<std::vector<char>> mask;
    const std::vector<std::vector<float>> h = {{0.1f, 0.5f, 0.9f}, {0.2f}, {0.4f, 9.0f}};
    high_entropy_tokens(mask, h, {3, 1, 0}, 0.5, 0, 3);  // of 0.1 0.2 0.5 0.9: 0.35; the last completion is masked
    EXPECT_EQ(mask, (std::vector<std::vector<char>>{{0, 1, 1}, {0}, {1, 1}}));
}

static std::string loss_refusal(std::vector<std::string> flags) {
    flags.insert(flags.begin(), "grpo");
    try {
        grpo_check_loss(parse_options(flags));
    } catch (const Error& e) { return e.what(); }
    return "";
}

TEST(LossOptions, NamesAreCombinations) {
    auto type = [](std::vector<std::string> flags) {
        flags.insert(flags.begin(), "grpo");
        const LossType t = loss_type_of(parse_options(flags));
        return format("%s %d %s", policy_loss_name(t.loss), t.sequence, loss_aggregation_names[(int)t.aggregation]);
    };
    EXPECT_EQ(type({}), "clip 0 token-mean");
    EXPECT_EQ(type({"--loss_type", "gspo"}), "clip 1 seq-mean-token-mean");
    EXPECT_EQ(type({"--loss_type", "gspo"}), type({"--loss_type", "grpo", "--importance_sampling_level", "sequence"}));
    EXPECT_EQ(type({"--loss_type", "tbpo", "--loss_aggregation", "token-mean"}), "trust_band 1 token-mean");
    EXPECT_EQ(type({"--policy_loss", "sapo"}), "sapo 0 token-mean");
    const GrpoConfig cispo = grpo_config(parse_options(std::vector<std::string>{"grpo", "--loss_type", "cispo"}));
    EXPECT_EQ(cispo.policy.high, 5.0);
    const GrpoConfig rloo =
        grpo_config(parse_options(std::vector<std::string>{"grpo", "--advantage_estimator", "rloo"}));
    EXPECT_EQ(rloo.scale_rewards, RewardScale::none);
}

TEST(LossOptions, WhatDoesNothingIsRefusedByName) {
    const std::pair<std::vector<std::string>, const char*> refused[] = {
        {{"--loss_type", "sapo", "--epsilon", "0.1"}, "--epsilon is not read by policy loss sapo"},
        {{"--loss_type", "vespo", "--epsilon_high", "0.3"}, "--epsilon_high is not read by policy loss vespo"},
        {{"--loss_type", "cispo", "--delta", "2"}, "--delta is not read by policy loss cispo"},
        {{"--sapo_temperature_pos", "2"}, "--sapo_temperature_pos is not read by policy loss clip"},
        {{"--loss_type", "sapo", "--vespo_k_neg", "2"}, "--vespo_k_neg is not read by policy loss sapo"},
        {{"--loss_type", "vespo", "--importance_sampling_level", "sequence"}, "vespo takes the weight of the whole"},
        {{"--loss_type", "tbpo", "--importance_sampling_level", "token"}, "trust_band clips the ratio of a sequence"},
        {{"--kl_in_reward"}, "--kl_in_reward: there is no KL term"},
        {{"--use_bias_correction_kl"}, "there is no KL term"},
        {{"--kl_estimator", "k1"}, "there is no KL term"},
        {{"--beta", "0.1", "--kl_in_reward", "--use_bias_correction_kl"}, "belongs to a KL term in the loss"},
        {{"--beta", "0.1", "--kl_in_reward", "--loss_type", "gspo", "--advantage_estimator", "reinforce_plus_plus"},
         "an advantage of its own"},
        {{"--steps_per_generation", "3", "--gradient_accumulation_steps", "2"}, "is not a multiple of"},
        {{"--scale_rewards", "group", "--advantage_estimator", "reinforce_plus_plus"}, "whitened over the batch"},
    };
    for (const auto& [flags, why] : refused) {
        const std::string said = loss_refusal(flags);
        EXPECT_NE(said.find(why), std::string::npos) << join_words(flags, " ") << ": " << said;
    }
    EXPECT_NE(loss_refusal({"--epsilon", "1.5"}).find("out of range"), std::string::npos);
    EXPECT_EQ(loss_refusal({"--loss_type", "tbpo", "--delta", "3"}), "");
}
