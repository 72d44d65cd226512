// How much faster a step is when some rows of the weights are trained (methods/efqat.cuh):
//   bench_efqat ROWS LENGTH SECONDS MODEL[,MODEL ...] SHARE[,SHARE ...]
// On the CPU; eval/efqat_backward builds and runs it.
//
// A model with random weights, quantized, takes ROWS sequences of LENGTH random tokens forward and backward, all rows
// of its weights trained and then each share of them, in turn; and then its optimizer. The best of as many rounds as
// fit in SECONDS for each counts, after one to warm up. "layers" is the backward without the head's, which is trained
// as ever.
#include <algorithm>
#include <cstdio>
#include "../commands/bench.cuh"

struct EfqatTimes {
    double forward = 1e30, head = 1e30, layers = 1e30, update = 1e30;  // seconds
    double backward() const { return head + layers; }
    double step() const { return forward + backward() + update; }
};

// all rows are trained, as without a method
static void train_all_rows(Model& m) {
    for (Layer& layer : m.layers)
        for (Linear* l : layer_linears(layer)) {
            l->trained.all = true;
            for (LinearPart& p : l->parts) p.trained.all = true;
        }
}

static void one_step(BenchModel& b, const Batch& batch, const ScoredTokens& scored, EfqatTimes& best) {
    Trainer& t = b.t;
    auto take = [](double& shortest, double& since) {
        const double now = wall_seconds();
        shortest = std::min(shortest, now - since);
        since = now;
    };
    double at = wall_seconds();
    const int64_t R = (int64_t)scored.size();
    score_forward_training(t, batch, scored, 1.0f);
    take(best.forward, at);
    const std::vector<float> dlogp((size_t)R, -1.0f / (float)R);
    copy_to_device(t.score.dlogp.data, dlogp.data(), dlogp.size() * sizeof(float), b.m.dev);
    at = wall_seconds();
    score_head_backward(t, R, 1.0f);
    take(best.head, at);
    score_hidden_backward(t, R);
    take(best.layers, at);
    optimizer_apply(t, 1e-6, 1.0);
    take(best.update, at);
}

static void bench_model(const std::string& name, int64_t rows, int64_t length, double seconds,
                        const std::vector<std::string>& shares) {
    const ModelConfig config = bench_config(name);
    BenchModel b;
    Batch batch;
    ScoredTokens scored;
    for (int64_t i = 0; i < rows; i++) {
        const std::vector<int> tokens = random_tokens(length, config.vocab_size, (uint32_t)i);
        batch_add_sequence(batch, tokens.data(), (int)length);
        score_last_sequence(scored, batch, 0);
    }
    bench_model_open(b, config, rules_parse("int4:g32", "weights", "all"), rows * length);
    std::vector<std::unique_ptr<TrainingMethod>> methods;
    for (const std::string& share : shares) {
        methods.push_back(efqat_row.make(settings_of("efqat:share=" + share, efqat_row.settings, "methods")));
        methods.back()->run.model = &b.m, methods.back()->run.tokens = rows * length;
        methods.back()->attach();
        methods.back()->start();
    }
    std::vector<EfqatTimes> times(shares.size() + 1);
    EfqatTimes cold;
    const double start = wall_seconds();
    for (int round = 0; round < 3 || wall_seconds() - start < seconds * (double)times.size(); round++)
        for (size_t i = 0; i < times.size(); i++) {
            if (i == 0) train_all_rows(b.m);
            else methods[i - 1]->resumed();
            one_step(b, batch, scored, round == 0 ? cold : times[i]);
        }
    for (size_t i = 0; i < times.size(); i++) {
        const EfqatTimes &all = times[0], &t = times[i];
        printf("| %s | %s | %.4f | %.4f | %.4f | %.4f | %.2f | %.2f | %.2f |\n", name.c_str(),
               i ? shares[i - 1].c_str() : "all", t.forward, t.backward(), t.layers, t.update,
               all.backward() / t.backward(), all.layers / t.layers, all.step() / t.step());
        fflush(stdout);
    }
}

int main(int argc, char** argv) try {
    if (argc != 6) fail_usage("usage: bench_efqat ROWS LENGTH SECONDS MODEL[,MODEL ...] SHARE[,SHARE ...]");
    const int64_t rows = atoll(argv[1]), length = atoll(argv[2]);
    if (rows < 1 || length < 2) fail_usage("bench_efqat: ROWS from 1 and LENGTH from 2 on");
    printf("%lld sequences of %lld tokens, %s, %s; seconds; how many times faster than with all rows\n",
           (long long)rows, (long long)length, PRECISION_NAME, instructions_name());
    printf("| model | rows trained | forward | backward | its layers | optimizer | backward | layers | step |\n");
    printf("|---|---|---|---|---|---|---|---|---|\n");
    for (const std::string& model : split_words(argv[4], ","))
        bench_model(model, rows, length, atof(argv[3]), split_words(argv[5], ","));
    return 0;
} catch (const Error& e) {
    fprintf(stderr, "%s\n", e.what());
    return e.exit_code;
}
