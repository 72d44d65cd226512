// What long work says of itself: the line at every width, remaining times by hand, and when a log gets a line. The clock
// is the test's.
#include <gtest/gtest.h>
#include <fcntl.h>
#include "../runtime/progress.h"

typedef ProgressKind Kind;

TEST(Progress, DurationsAreShort) {
    EXPECT_EQ(duration_text(40.0), "40 s");
    EXPECT_EQ(duration_text(38.4 * 60), "38 min");
    EXPECT_EQ(duration_text(9000.0), "2.5 h");
}

TEST(Progress, PaceForgetsWithTime) {
    Pace p;
    EXPECT_EQ(p.each(), 0.0);
    p.see(1, 10);
    EXPECT_DOUBLE_EQ(p.each(), 10.0);
    p.see(1, 12);  // the first step weighs (10/12)^2
    EXPECT_DOUBLE_EQ(p.each(), (10 * 100 / 144.0 + 2) / (100 / 144.0 + 1));
    p.pause(100);  // an evaluation between
    p.see(1, 114);
    const double seconds = (10 * 100 / 144.0 + 2) * 144 / 196.0 + 2, work = (100 / 144.0 + 1) * 144 / 196.0 + 1;
    EXPECT_DOUBLE_EQ(p.each(), seconds / work);
    Pace even;
    for (int i = 1; i <= 1000; i++) even.see(2, 0.5 * i);
    EXPECT_NEAR(even.each(), 0.25, 1e-12);
    for (int i = 1; i <= 500; i++) even.see(2, 500 + i);  // half as fast, for as long again
    EXPECT_NEAR(even.each(), 4.0 / 9.0, 0.001);
}

TEST(Progress, WhatIsLeftOfSteps) {
    ProgressCount p("grpo", "step", 80, Kind::steps, 1000);
    EXPECT_EQ(p.left(1000), -1.0);
    EXPECT_EQ(p.left(1300), -1.0);  // a first evaluation says nothing of a step
    p.from(40, 1300);               // resumed: 40 steps of another run
    EXPECT_EQ(p.left(1300), -1.0);
    p.to(41, 1302);
    EXPECT_DOUBLE_EQ(p.left(1302), 78.0);
    EXPECT_DOUBLE_EQ(p.left(1303), 77.0);  // half a step later
    EXPECT_DOUBLE_EQ(p.left(1310), 76.0);  // no more than the step that is late
    p.later = 30;
    EXPECT_DOUBLE_EQ(p.left(1302), 108.0);
    p.to(80, 1380);
    EXPECT_DOUBLE_EQ(p.left(1380), 30.0);  // the evaluation at the end
    p.to(81, 1382);                        // more than there are
    EXPECT_DOUBLE_EQ(p.left(1382), 30.0);
}

// the prompts took 200 s, which is not to be multiplied by 4,000 tokens
TEST(Progress, WhatIsLeftOfTokens) {
    ProgressCount p("evaluating", "completion", 40, Kind::work, 0);
    EXPECT_EQ(p.left(100), -1.0);
    p.measure(1, 4000, "tok", 200);
    EXPECT_EQ(p.left(200), -1.0);
    p.measure(40, 4000, "tok", 200);
    EXPECT_EQ(p.left(200), -1.0);
    p.measure(240, 4000, "tok", 202.5);
    EXPECT_EQ(p.left(202.5), -1.0);  // too early to say
    p.measure(440, 4000, "tok", 205);
    EXPECT_DOUBLE_EQ(p.left(205), 44.5);
    p.to(10, 205);
    p.measure(440, 1760, "tok", 205);  // completions are shorter than they may be
    EXPECT_DOUBLE_EQ(p.left(205), 16.5);
    p.to(40, 205);
    p.measure(1760, 1760, "tok", 205);
    EXPECT_EQ(p.left(205), 0.0);
}

// tokens that come a micro-batch at a time
TEST(Progress, WhatIsLeftCountsDownBetween) {
    ProgressCount p("update", "token", 5000, Kind::part, 0);
    p.to(1000, 100);
    EXPECT_DOUBLE_EQ(p.left(100), 400.0);
    EXPECT_DOUBLE_EQ(p.left(160), 340.0);
    EXPECT_DOUBLE_EQ(p.left(900), 300.0);
}

// ---------------------------------------------------------------------------------------------------------------------
// the line

struct Line {
    ProgressCount run{"grpo", "step", 80, Kind::steps, 0}, sampling{"sampling", "completion", 512, Kind::part, 20};
    Line() {
        for (int i = 1; i <= 40; i++) run.to(i, 0.5 * i);
        sampling.to(312, 20);
    }
    std::string at(int columns) { return progress_text({&run, &sampling}, 20, columns); }
};

TEST(ProgressLine, FitsEveryWidth) {
    Line l;
    const std::string rest = "step 41/80, 0.5 s a step, 20 s left | sampling 312/512 completions";
    EXPECT_EQ(l.at(200), "grpo [############............] " + rest);
    EXPECT_EQ(l.at(79), "grpo [#########..........] step 41/80, 20 s left | sampling 312/512 completions");
    EXPECT_EQ(l.at(39), "grpo step 41/80 | sampling 312/512");
    EXPECT_EQ(l.at(26), "grpo step 41/80, 20 s left");
    EXPECT_EQ(l.at(20), "grpo step 41/80");
    EXPECT_EQ(l.at(10), "grpo step ");
    EXPECT_EQ(l.at(0), "grpo step 41/80, 20 s left | sampling 312/512 completions");
    for (int columns = 1; columns < 120; columns++) {
        EXPECT_LE((int)l.at(columns).size(), columns);
        for (char c : l.at(columns)) EXPECT_TRUE(c >= ' ' && c < 127) << columns;  // nor any styling: NO_COLOR
    }
}

TEST(ProgressLine, TotalsThatAreUnknownAndCountsBeyondThem) {
    auto text = [](int64_t total, int64_t done, Kind kind = Kind::work) {
        ProgressCount p("grading", "row", total, kind, 0);
        p.to(done, 10);
        return progress_text({&p}, 10, 80);
    };
    EXPECT_EQ(text(0, 0), "grading");
    EXPECT_EQ(text(0, 1), "grading 1 row, 10.0 s a row");
    EXPECT_EQ(text(0, 4000000), "grading 4000000 rows, 400.0k rows/s");
    EXPECT_EQ(text(1, 0), "grading [........................] 0/1 row");
    EXPECT_EQ(text(512, 600), "grading [########################] 600/512 rows, 60 rows/s");
    EXPECT_EQ(text(0, 0, Kind::steps), "grading row 1");
    EXPECT_EQ(text(3, 3, Kind::steps), "grading [########################] row 3/3, 3.3 s a row");
    EXPECT_EQ(text(1000000, 10), "grading [........................] 10/1000000 rows, 1.0 s a row, 277.8 h left")
        << "very slow";
}

// bytes tell the share, rows the rate
TEST(ProgressLine, MeasuredByWhatIsNotCounted) {
    ProgressCount p("grading", "row", 0, Kind::work, 0);
    p.measure(100, 10000, "", 0);
    p.measure(2500, 10000, "", 10);
    p.to(250, 10);
    EXPECT_EQ(progress_text({&p}, 10, 80), "grading [######..................] 250 rows, 25 rows/s, 31 s left");
}

TEST(ProgressLine, WhatIsWithinStandsBehind) {
    Line l;
    ProgressCount evaluating("evaluating", "completion", 1280, Kind::work, 20);
    ProgressCount reading("reading", "prompt", 100, Kind::part, 20);
    ProgressCount rewards("rewards", "completion", 0, Kind::part, 20);
    reading.to(10, 30);
    const std::vector<const ProgressCount*> stack = {&l.run, &evaluating, &reading};
    EXPECT_EQ(progress_text(stack, 30, 0),
              "grpo step 41/80, 19 s left | evaluating 0/1280 completions | reading 10/100 prompts, 2 min left");
    EXPECT_EQ(progress_text(stack, 30, 50), "grpo step 41/80, 19 s left | reading 10/100");
    EXPECT_EQ(progress_text({&l.run, &rewards}, 30, 0), "grpo step 41/80, 19 s left | rewards");
}

// ---------------------------------------------------------------------------------------------------------------------
// lines of a log

// of work that takes so many seconds, asked each second
static std::string lines(double total, Kind kind, int units, bool speaks = false) {
    ProgressCount p("evaluating", kind == Kind::steps ? "step" : "completion", units, kind, 0);
    std::string text;
    for (double t = 1; t < total; t += 1) {
        const int64_t done = (int64_t)(units * t / total);
        if (done > p.done && speaks) p.next = t + 60;
        p.to(done, t);
        if (progress_due({&p}, t)) text += format("%.0f: ", t) + progress_text({&p}, t, 0) + "\n";
    }
    return text;
}

TEST(ProgressLog, LongWorkIsAnnouncedAndShortSaysNothing) {
    EXPECT_EQ(lines(19, Kind::work, 1280), "");
    EXPECT_EQ(lines(29, Kind::work, 1280), "");
    EXPECT_EQ(lines(170, Kind::work, 1280),
              "10: evaluating 75/1280 completions, 3 min left\n"
              "70: evaluating 527/1280 completions, 2 min left\n"
              "130: evaluating 978/1280 completions, 40 s left\n");
    EXPECT_EQ(lines(100, Kind::work, 0), "60: evaluating\n");  // nobody knows how long
}

// steps have lines of their own; a step that takes longer than a minute is told of
TEST(ProgressLog, StepsSpeakForThemselves) {
    EXPECT_EQ(lines(300, Kind::steps, 100, true), "");
    EXPECT_EQ(lines(200, Kind::steps, 2, true), "60: evaluating step 1/2\n160: evaluating step 2/2, 40 s left\n");
}

// an evaluation within a run is announced as one that is not
TEST(ProgressLog, TheInnermostSpeaks) {
    ProgressCount run("grpo", "step", 80, Kind::steps, 0), eval("evaluating", "completion", 100, Kind::work, 5),
        reading("reading", "prompt", 100, Kind::part, 5);
    const std::vector<ProgressCount*> stack = {&run, &eval, &reading};
    std::string said;
    for (int t = 6; t <= 100; t++) {
        reading.to(t - 5, t);
        if (progress_due(stack, t)) said += format("%d ", t);
    }
    EXPECT_EQ(said, "15 75 ");
    EXPECT_FALSE(progress_due({&run}, 100));  // it has just been told
    EXPECT_TRUE(progress_due({&run}, 136));
}

// ---------------------------------------------------------------------------------------------------------------------
// where it is shown

TEST(Progress, TerminalsAndOthers) {
    const int master = posix_openpt(O_RDWR | O_NOCTTY);
    ASSERT_GE(master, 0);
    ASSERT_EQ(grantpt(master) | unlockpt(master), 0);
    const int terminal = open(ptsname(master), O_RDWR | O_NOCTTY);
    ASSERT_GE(terminal, 0);
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    const char* before = getenv("TERM");
    const std::string kept = before ? before : "";
    for (const auto& [term, shows] : {std::pair("xterm", true), {"dumb", false}, {"", false}}) {
        setenv("TERM", term, 1);
        EXPECT_EQ(progress_is_terminal(terminal), shows) << term;
        EXPECT_FALSE(progress_is_terminal(ends[1]));
    }
    unsetenv("TERM");
    EXPECT_FALSE(progress_is_terminal(terminal));
    if (before) setenv("TERM", kept.c_str(), 1);
    for (int fd : {master, terminal, ends[0], ends[1]}) close(fd);
}

// parts say nothing by themselves, and lives may end in any order of kinds
TEST(Progress, LivesWithinLives) {
    ProgressScreen& s = progress_screen();
    {
        Progress alone("sampling", "completion", 4, Kind::part);
        EXPECT_TRUE(s.stack.empty());
        alone.add();
    }
    {
        Progress run("sft", "step", 2, Kind::steps);
        for (int i = 1; i <= 2; i++) {
            Progress update("update", "token", 100, Kind::part);
            EXPECT_EQ(s.stack.size(), 2u);
            update.add(100);
            run.to(i);
        }
        EXPECT_EQ(s.stack.size(), 1u);
        EXPECT_EQ(s.stack[0]->done, 2);
        EXPECT_TRUE(s.painter.joinable());
    }
    EXPECT_TRUE(s.stack.empty());
    EXPECT_FALSE(s.painter.joinable());
    try {
        Progress failing("loading", "tensor", 3);
        fail("a file is short");
    } catch (const Error&) { EXPECT_TRUE(s.stack.empty()); }
}
