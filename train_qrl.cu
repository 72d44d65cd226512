// train_qrl: reinforcement learning of quantized reasoning models.
//   ./train_qrl [command] [--flag value ...]
#include "commands/bench.cuh"        // bench_command: speed of the machine, operators, steps
#include "commands/compare.cuh"      // compare_command: paired tests between evaluations
#include "commands/distill.cuh"      // distill_command: learn from a teacher
#include "commands/eval.cuh"         // eval_command: accuracy on held-out problems
#include "commands/export.cuh"       // export_command: a file for other tools
#include "commands/generate.cuh"     // generate_command: complete a prompt
#include "commands/grade.cuh"        // grade_command: are these answers right?
#include "commands/grpo.cuh"         // grpo_command: the main job
#include "commands/quantize.cuh"     // quantize_command: post-training quantization
#include "commands/sft.cuh"          // sft_command: supervised fine-tuning
#include "commands/report.cuh"       // report_command: a run as a page of curves
#include "commands/study.cuh"        // study_command: arms over a grid and seeds, as one table
#include "commands/text.cuh"         // tokenize_command, logprobs_command: JSON lines in and out
#include "runtime/cpu_check.h"       // before main: has the CPU what the program was compiled for?
#include "runtime/standard_files.h"  // open_standard_files, flush_result, flush_report
#include "runtime/threads.h"         // threads_spin_briefly

static int run_command(Session& s) {
    switch (s.o.command) {
#define CMD(id, name, trains, help) \
    case COMMAND_##id:              \
        return name##_command(s);
        COMMAND_TABLE(CMD)
#undef CMD
        case COMMAND_COUNT:
            break;
    }
    return 2;
}

int main(int argc, char** argv) {
    open_standard_files();
    threads_spin_briefly(argv);
    try {
        Session s;
        s.o = parse_options(argc, argv);
        if (s.o.action != OPTIONS_RUN) {
            const std::string text = s.o.action == OPTIONS_METHODS   ? training_methods_help()
                                     : s.o.action == OPTIONS_PTQ     ? ptq_help()
                                     : s.o.action == OPTIONS_REWARDS ? rewards_help()
                                                                     : options_answer(s.o);
            fputs(text.c_str(), stdout);
            flush_result();
            return 0;
        }
#if !defined(_OPENMP)
        fprintf(stderr, "warning: built without OpenMP, one core is used\n");
#endif
        signal(SIGXFSZ, SIG_IGN);  // a file size limit is then an error of write(), with a message
        const bool prints_result = s.o.plan || !((IN_FILES | IN_EXPORT | IN_STUDY) >> s.o.command & 1);
        if (!prints_result) signal(SIGPIPE, SIG_IGN);
        // the other commands have nothing to save: Ctrl-C ends them at once, also while they wait for input
        if ((IN_TRAIN | IN_EVAL | IN_STUDY) >> s.o.command & 1) install_stop_handler();
        if (IN_TRAIN >> s.o.command & 1) session_resume(s, std::vector<std::string>(argv + 1, argv + argc));
        session_adapter(s);
        const int status = run_command(s);
        if (prints_result) flush_result();
        else flush_report(s.o.output_dir);
        return status;
    } catch (const Error& e) {
        fflush(stdout);
        fprintf(stderr, "train_qrl: %s\n", escape_controls(e.what()).c_str());
        return e.exit_code;
    } catch (const std::bad_alloc&) {
        fprintf(stderr, "train_qrl: out of memory; lower --micro_batch_tokens or --rollout_batch\n");
        return 1;
    } catch (const std::exception& e) {
        fprintf(stderr, "train_qrl: %s\n", escape_controls(e.what()).c_str());
        return 1;
    }
}
