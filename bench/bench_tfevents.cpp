// Cost of a run's event files beside its metrics.jsonl, in time of the processor: steps of as many numbers as a step of GRPO
// logs, with nothing between them. The folder is one that test/check_events.py reads.
//   make build/bench_tfevents && build/bench_tfevents FOLDER [STEPS [NUMBERS]]
#include <cstdio>
#include <ctime>
#include <random>
#include "../formats/tfevents.h"

static double cpu_seconds() { return (double)clock() / CLOCKS_PER_SEC; }

int main(int argc, char** argv) {
    if (argc < 2) return fprintf(stderr, "usage: %s FOLDER [STEPS [NUMBERS]]\n", argv[0]), 2;
    const std::string path = argv[1];
    const int steps = argc > 2 ? atoi(argv[2]) : 10000, numbers = argc > 3 ? atoi(argv[3]) : 60;
    try {
        RunDirSetting setting;
        setting.overwrite = setting.events = true;
        RunDir run = open_run_dir(path, setting, nlohmann::ordered_json::object());
        begin_events(run, -1, false);
        std::mt19937_64 random(1);
        std::normal_distribution<double> normal;
        double lines = 0.0, events = 0.0;
        for (int step = 1; step <= steps; step++) {
            nlohmann::ordered_json j;
            j["step"] = step;
            for (int i = 0; i < numbers; i++) j[format("group_%d/number_%d", i / 8, i)] = normal(random);
            const double start = cpu_seconds();
            log_metrics(run, j);
            const double middle = cpu_seconds();
            log_event_scalars(run, step, j);
            lines += middle - start, events += cpu_seconds() - middle;
        }
        const double start = wall_seconds();
        run.events.close();
        const double closed = wall_seconds() - start, size = (double)read_file(path + "/" + run.events_name).size();
        printf(
            "%d steps of %d numbers: metrics.jsonl %.1f us a step, events %.1f us and %.0f bytes a step; %.3f s to "
            "flush "
            "them to the disk\n",
            steps, numbers, 1e6 * lines / steps, 1e6 * events / steps, size / steps, closed);
    } catch (const Error& e) { return fprintf(stderr, "%s\n", e.what()), 1; }
}
