// Studies: what a file may say, which runs it makes, and what they share (eval/study.h). No run is run here.
#include <gtest/gtest.h>
#include <filesystem>
#include "../eval/study_pictures.h"

static const char* STUDY = R"({
    "seeds": [1, 2],
    "all": {"task": "arithmetic", "eval_n": 4},
    "stages": {
        "cold": {"command": "grpo", "max_steps": 0},
        "rl": {"command": "grpo", "max_steps": 8, "learning_rate": 1e-4},
        "qat": {"command": "grpo", "weights": "{bits}"},
        "rtn": {"command": "quantize", "weights": "{bits}", "ptq": "{how}"},
        "kd": {"command": "distill", "teacher": "@fp"}
    },
    "grid": {"bits": ["int4:g32", "int3:g32"], "how": ["rtn", "gptq"]},
    "arms": {
        "start": ["cold"], "fp": ["cold", "rl"], "qat": ["cold", "qat"], "fp>rtn": ["cold", "rl", "rtn"],
        "kd": ["cold", "rtn", "kd"]
    },
    "compare": ["fp>rtn - qat"]
})";

static StudyJson study_json() { return StudyJson::parse(STUDY); }
static Study parsed(const StudyJson& j) { return study_parse(j, "some.json"); }

static const StudyCell& cell_of(const StudyLayout& l, const std::string& name) {
    for (const StudyCell& c : l.cells)
        if (c.name == name) return c;
    ADD_FAILURE() << "no cell " << name;
    return l.cells.at(0);
}

TEST(Study, CellsAreArmsOverTheKeysThatTheyHave) {
    const StudyLayout l = study_lay_out(parsed(study_json()), {});
    std::vector<std::string> names;
    for (const StudyCell& c : l.cells) names.push_back(c.name);
    const std::vector<std::string> wanted = {"start",
                                             "fp",
                                             "qat int4:g32",
                                             "qat int3:g32",
                                             "fp>rtn int4:g32 rtn",
                                             "fp>rtn int4:g32 gptq",
                                             "fp>rtn int3:g32 rtn",
                                             "fp>rtn int3:g32 gptq",
                                             "kd int4:g32 rtn",
                                             "kd int4:g32 gptq",
                                             "kd int3:g32 rtn",
                                             "kd int3:g32 gptq"};
    EXPECT_EQ(names, wanted);
    EXPECT_TRUE(l.complete);
}

TEST(Study, ArmsThatBeginAlikeShareTheirRuns) {
    const StudyLayout l = study_lay_out(parsed(study_json()), {});
    const StudyCell &fp = cell_of(l, "fp"), &rtn = cell_of(l, "fp>rtn int4:g32 rtn"), &qat = cell_of(l, "qat int4:g32");
    for (const size_t seed : {0u, 1u}) {
        EXPECT_EQ(fp.chains[seed][0], qat.chains[seed][0]);
        EXPECT_EQ(fp.chains[seed][1], rtn.chains[seed][1]);
        EXPECT_NE(fp.chains[seed][1], qat.chains[seed][1]);
        EXPECT_EQ(l.runs[fp.evaluations[seed]].from, fp.chains[seed].back());
    }
    EXPECT_NE(fp.chains[0][0], fp.chains[1][0]);
    // cold, rl, 2 qat, 4 rtn behind rl, 4 rtn behind cold, 4 kd; an evaluation of each cell; for two seeds
    EXPECT_EQ(l.runs.size(), 2u * (1 + 1 + 2 + 4 + 4 + 4 + 12));
    std::set<std::string> ids;
    for (size_t i = 0; i < l.runs.size(); i++) {
        ids.insert(l.runs[i].id);
        EXPECT_LT(l.runs[i].from, (int)i) << "each behind those it needs";
        for (const auto& other : l.runs[i].others) EXPECT_LT(other.second, (int)i);
    }
    EXPECT_EQ(ids.size(), l.runs.size());
}

TEST(Study, FlagsAreSubstitutedAndThoseOfAllAreGivenToCommandsThatHaveThem) {
    const StudyLayout l = study_lay_out(parsed(study_json()), {});
    const StudyCell& kd = cell_of(l, "kd int3:g32 gptq");
    const StudyRun &rtn = l.runs[kd.chains[1][1]], &distill = l.runs[kd.chains[1][2]];
    EXPECT_EQ(rtn.flags["weights"], "int3:g32");
    EXPECT_EQ(rtn.flags["ptq"], "gptq");
    EXPECT_EQ(rtn.flags["seed"], 2);
    EXPECT_EQ(rtn.flags["task"], "arithmetic");
    ASSERT_EQ(distill.others.size(), 1u);
    EXPECT_EQ(distill.others[0].first, "teacher");
    EXPECT_EQ(distill.others[0].second, cell_of(l, "fp").chains[1].back());
}

TEST(Study, WhatAllStagesHaveMayBeOfTheGrid) {
    StudyJson j = study_json();
    j["grid"]["task"] = {"chains", "words"};
    j["all"]["task"] = "{task}";
    j["evaluation"]["task"] = "{task},{task}:hard";
    const StudyLayout l = study_lay_out(parsed(j), {});
    const StudyCell& words = cell_of(l, "fp words");
    EXPECT_EQ(l.runs[words.chains[0].back()].flags["task"], "words");
    EXPECT_EQ(l.runs[words.evaluations[0]].flags["task"], "words,words:hard");
    EXPECT_NE(words.chains[0][0], cell_of(l, "fp chains").chains[0][0]);
    EXPECT_EQ(l.cells.size(), 24u);
}

TEST(Study, ARunIsKnownByAllThatLeadsToIt) {
    auto last_id = [](const StudyJson& j) {
        const StudyLayout l = study_lay_out(parsed(j), {});
        return l.runs[cell_of(l, "fp>rtn int4:g32 rtn").chains[0].back()].id;
    };
    const std::string id = last_id(study_json());
    StudyJson j = study_json();
    j["stages"]["cold"]["cold_start_loss"] = 0.5;
    EXPECT_NE(last_id(j), id) << "a stage before it is another";
    j = study_json();
    j["stages"]["rl"] = StudyJson::parse(R"({"learning_rate": 1e-4, "max_steps": 8, "command": "grpo"})");
    EXPECT_EQ(last_id(j), id) << "the order of flags is no difference";
    j["model"] = "some/folder";
    EXPECT_NE(last_id(j), id);
    j = study_json();
    j["arms"].erase("qat");
    j.erase("compare");
    j["seeds"] = 1;
    EXPECT_EQ(last_id(j), id) << "other arms and seeds change nothing";
}

TEST(Study, ASweepRunsWithASeedOfItsOwnAndItsBestValueIsTaken) {
    StudyJson j = study_json();
    j["stages"]["qat"]["sweep"]["learning_rate"] = {1e-5, 1e-4, 1e-3};
    const Study s = parsed(j);
    EXPECT_EQ(s.sweep_seed, 1001u);
    StudyLayout l = study_lay_out(s, {});
    EXPECT_FALSE(l.complete);
    EXPECT_TRUE(cell_of(l, "qat int4:g32").chains[0].empty());
    EXPECT_FALSE(cell_of(l, "fp").chains[0].empty()) << "others need not wait";
    StudyScores scores;
    int tried = 0;
    for (const StudyRun& run : l.runs)
        if (run.stage == "validation") {
            const StudyRun& of = l.runs[run.from];
            EXPECT_EQ(run.flags["task"], "arithmetic:validation");
            EXPECT_EQ(of.flags["seed"], 1001);
            scores[run.id] = of.flags["learning_rate"] == 1e-4 ? 0.5 : 0.1 * ++tried;
        }
    EXPECT_EQ(scores.size(), 6u) << "for each point of the grid";
    const StudyScores one_missing(std::next(scores.begin()), scores.end());
    EXPECT_FALSE(study_lay_out(s, one_missing).complete);
    l = study_lay_out(s, scores);
    EXPECT_TRUE(l.complete);
    for (const char* name : {"qat int4:g32", "qat int3:g32"}) {
        const StudyCell& cell = cell_of(l, name);
        ASSERT_EQ(cell.chosen.size(), 1u);
        EXPECT_EQ(cell.chosen[0].first, "qat.learning_rate");
        EXPECT_EQ(l.runs[cell.chains[1].back()].flags["learning_rate"], 1e-4);
        EXPECT_EQ(l.runs[cell.chains[1].back()].flags["seed"], 2);
    }
}

TEST(Study, AnArmMayHaveAnEvaluationAndSeedsOfItsOwn) {
    StudyJson j = study_json();
    j["evaluation"] = {{"eval_n", 8}, {"eval_samples", 2}};
    j["arms"]["start"] = {{"stages", {"cold"}}, {"evaluation", {{"eval_samples", 16}}}, {"seeds", 1}};
    const StudyLayout l = study_lay_out(parsed(j), {});
    const StudyCell &start = cell_of(l, "start"), &fp = cell_of(l, "fp");
    ASSERT_EQ(start.evaluations.size(), 1u);
    EXPECT_EQ(fp.evaluations.size(), 2u);
    EXPECT_EQ(l.runs[start.evaluations[0]].flags["eval_samples"], 16);
    EXPECT_EQ(l.runs[start.evaluations[0]].flags["eval_n"], 8);
    EXPECT_EQ(l.runs[fp.evaluations[0]].flags["eval_samples"], 2);
    EXPECT_EQ(start.chains[0][0], fp.chains[0][0]);
}

TEST(Study, AFlagMayBeWhatAnotherArmHasOrHasChosen) {
    StudyJson j = study_json();
    j["stages"]["again"] = {{"command", "grpo"}, {"learning_rate", "@fp"}};
    j["arms"]["again"] = {"cold", "again"};
    const StudyLayout given = study_lay_out(parsed(j), {});
    EXPECT_EQ(given.runs[cell_of(given, "again").chains[0].back()].flags["learning_rate"], 1e-4);
    j["stages"]["rl"].erase("learning_rate");
    j["stages"]["rl"]["sweep"]["learning_rate"] = {1e-5, 1e-3};
    StudyLayout l = study_lay_out(parsed(j), {});
    EXPECT_TRUE(cell_of(l, "again").chains[0].empty()) << "nothing is chosen yet";
    StudyScores scores;
    for (const StudyRun& run : l.runs)
        if (run.stage == "validation") scores[run.id] = l.runs[run.from].flags["learning_rate"] == 1e-3;
    l = study_lay_out(parsed(j), scores);
    EXPECT_EQ(l.runs[cell_of(l, "again").chains[1].back()].flags["learning_rate"], 1e-3);
    // of the grid, it is the value at this point
    j["stages"]["rl"] = {{"command", "grpo"}, {"learning_rate", "{bits}"}};
    l = study_lay_out(parsed(j), {});
    EXPECT_EQ(l.runs[cell_of(l, "again int3:g32").chains[1].back()].flags["learning_rate"], "int3:g32");
    j["stages"]["rl"].erase("learning_rate");
    EXPECT_THROW(study_lay_out(parsed(j), {}), Error) << "no stage of fp has one";
}

TEST(Study, WhatIsBehindASweepIsForeseen) {
    StudyJson j = study_json();
    j["stages"]["rl"].erase("learning_rate");
    j["stages"]["rl"]["sweep"]["learning_rate"] = {1e-5, 1e-3};
    const Study s = parsed(j);
    EXPECT_FALSE(study_lay_out(s, {}).complete);
    const StudyLayout l = study_foresee(s, {});
    EXPECT_TRUE(l.complete);
    EXPECT_EQ(l.runs[cell_of(l, "fp").chains[0].back()].flags["learning_rate"], 1e-5);
    EXPECT_EQ(cell_of(l, "kd int3:g32 gptq").chains[1].size(), 3u);
}

// what is left out is known by nothing else: its runs are those of the whole form
TEST(Study, TheQuickFormIsAPartOfTheWhole) {
    StudyJson j = study_json();
    j["start"] = "start", j["full"] = "fp";
    j["stages"]["qat"]["sweep"]["learning_rate"] = {1e-5, 1e-4, 1e-3};
    j["claims"] = {
        {"1", {{"claim", "one"}, {"more", "fp>rtn - qat"}, {"where", {{"bits", {"int4:g32"}}}}}},
        {"2", {{"claim", "two"}, {"more", "fp>rtn - kd"}}},
        {"3", {{"claim", "three"}, {"kept_below", "qat"}, {"share", 60}, {"where", {{"bits", {"int3:g32"}}}}}}};
    j["quick"] = {{"seeds", 1},
                  {"grid", {{"bits", {"int4:g32"}}, {"how", {"rtn"}}}},
                  {"stages", {{"qat", {{"learning_rate", 1e-4}}}}},
                  {"arms", {"start", "fp", "fp>rtn", "qat"}}};
    // an arm whose name begins with another's, which stays, and what is said of it
    j["arms"]["qat again"] = {"cold", "qat"}, j["reported"]["qat again"] = "much";
    j["claims"]["4"] = {{"claim", "four"}, {"more", "fp - qat again"}};
    const Study quick = study_parse(j, "some.json", true), whole = study_parse(j, "some.json");
    EXPECT_EQ(whole.claims.size(), 4u);
    ASSERT_EQ(quick.claims.size(), 1u) << "the second and fourth have no arm, the third no value of the grid";
    EXPECT_TRUE(quick.reported.empty());
    EXPECT_EQ(quick.claims[0].text, "one");
    const StudyLayout some = study_lay_out(quick, {});
    EXPECT_TRUE(some.complete) << "nothing is swept";
    StudyScores scores;
    for (const StudyRun& run : study_lay_out(whole, {}).runs)
        if (run.stage == "validation") scores[run.id] = 0.5;
    std::set<std::string> ids;
    for (const StudyRun& run : study_lay_out(whole, scores).runs) ids.insert(run.id);
    for (const StudyRun& run : some.runs)
        EXPECT_TRUE(ids.count(run.id) || run.flags.value("learning_rate", 0.0) == 1e-4 || run.stage == "evaluation")
            << run.id;
    EXPECT_EQ(some.cells.size(), 4u);
    j.erase("quick");
    EXPECT_THROW(study_parse(j, "some.json", true), Error);
}

TEST(Study, AClaimAloneNeedsItsArmsAndWhatTheyReferTo) {
    StudyJson j = study_json();
    j["claims"] = {{"A1", {{"claim", "a"}, {"more", "kd int4:g32 rtn - qat"}}},
                   {"B", {{"claim", "b"}, {"more", "fp>rtn - fp"}}}};
    Study s = parsed(j);
    study_keep_claims(s, {"A1"});
    std::vector<std::string> arms;
    for (const StudyArm& arm : s.arms) arms.push_back(arm.name);
    EXPECT_EQ(arms, (std::vector<std::string>{"fp", "qat", "kd"})) << "fp is kd's teacher";
    EXPECT_EQ(s.claims.size(), 1u);
    EXPECT_TRUE(s.pairs.empty());
    const StudyLayout whole = study_lay_out(parsed(j), {}), some = study_lay_out(s, {});
    EXPECT_EQ(whole.runs[cell_of(whole, "fp").chains[0].back()].id, some.runs[cell_of(some, "fp").chains[0].back()].id);
    Study again = parsed(j);
    EXPECT_THROW(study_keep_claims(again, {"A2"}), Error);
}

TEST(Study, ClaimsAreRead) {
    StudyJson j = study_json();
    j["start"] = "start", j["full"] = "fp";
    j["claims"] = {{"A1", {{"from", "A"}, {"claim", "is above"}, {"more", "fp>rtn - qat"}}},
                   {"B5", {{"claim", "far above"}, {"more", "kd - qat"}, {"least", 10}}},
                   {"A2", {{"claim", "keeps little"}, {"kept_below", "qat"}, {"share", 60}}},
                   {"C5", {{"claim", "in this order"}, {"order", {"kd", "qat"}}}},
                   {"B2", {{"claim", "sooner"}, {"sooner", "kd - qat"}, {"curve", "reward"}}}};
    const Study s = parsed(j);
    ASSERT_EQ(s.claims.size(), 5u);
    EXPECT_EQ(s.claims[0].pairs[0].better, "fp>rtn");
    EXPECT_EQ(s.claims[0].pairs[0].worse, "qat");
    EXPECT_EQ(s.claims[0].bound, 1.0);
    EXPECT_EQ(s.claims[1].bound, 10.0);
    EXPECT_EQ(s.claims[2].rule, "kept_below");
    EXPECT_EQ(s.claims[3].pairs.size(), 2u);
    EXPECT_EQ(s.claims[4].bound, 90.0);
}

// Those that come with the program: all flags are what their commands take, quick or not
TEST(Study, TheStudiesThatComeWithTheProgramAreRead) {
    int files = 0;
    for (const auto& entry : std::filesystem::directory_iterator("eval/studies")) {
        const std::string path = entry.path().string();
        const StudyJson j = json_parse<StudyJson>(read_file(path, 1 << 20), path);
        for (const bool quick : {false, true}) {
            if (quick && !j.contains("quick")) continue;
            const Study s = study_parse(j, path, quick);
            const StudyLayout l = study_foresee(s, {});
            EXPECT_FALSE(l.runs.empty()) << path;
            for (const StudyRun& run : l.runs) {
                std::vector<std::string> args = {command_rows[run.command].name};
                for (const auto& flag : run.flags.items())
                    args.push_back("--" + flag.key() + "=" +
                                   (flag.value().is_string() ? flag.value().get<std::string>() : flag.value().dump()));
                EXPECT_NO_THROW(parse_options(args)) << path << ": " << run.stage;
            }
            files++;
        }
    }
    EXPECT_GE(files, 5);
}

TEST(Study, APictureHasALineForEachArmAndPointOfTheOtherKeys) {
    StudyJson j = study_json();
    j["grid"] = {{"bits", {"int4:g32", "int2:g32"}}, {"how", {"rtn"}}, {"rate", {"1e-3", "1e-5"}}};
    j["stages"]["qat"]["learning_rate"] = "{rate}";
    j["pictures"] = {{"rates", {{"across", "rate"}, {"arms", {"fp", "qat"}}}},
                     {"bits", {{"title", "By bits"}, {"across", "bits"}, {"arms", {"qat"}}}}};
    const Study study = parsed(j);
    const StudyLayout layout = study_lay_out(study, {});
    StudyResults r;
    r.sets.emplace_back();
    for (size_t c = 0; c < layout.cells.size(); c++) {
        ArmResult a;
        a.problems = 10, a.value = 0.01 * (double)c, a.interval = {a.value - 0.001, a.value + 0.001};
        r.arm_of.push_back((int)c), r.sets[0].arms.push_back(a);
        r.arms.emplace_back(), r.arms.back().runs.resize(1);
        StudyOutcome o;
        o.state = "done", o.bits = layout.cells[c].name.find("int4") != std::string::npos ? 4.5 : 2.5;
        r.outcomes.push_back({o});
    }
    auto value_of = [&](const std::string& cell) {
        for (size_t c = 0; c < layout.cells.size(); c++)
            if (layout.cells[c].name == cell) return (double)c;
        return -1.0;
    };
    const auto pictures = study_pictures(r, study, layout);
    ASSERT_EQ(pictures.size(), 2u);
    const Plot& rates = pictures[0].second;
    EXPECT_EQ(rates.title, "rates");
    EXPECT_EQ(rates.x.label, "rate");
    EXPECT_TRUE(rates.x.log);
    ASSERT_EQ(rates.series.size(), 3u);  // an arm at each number of bits, and one without a rate
    EXPECT_EQ(rates.series[0].name, "qat int4:g32");
    EXPECT_EQ(rates.series[0].x, (std::vector<double>{1e-5, 1e-3})) << "in the order of x";
    EXPECT_DOUBLE_EQ(rates.series[0].y[0], value_of("qat int4:g32 1e-5"));
    EXPECT_EQ(rates.series[2].name, "fp");
    EXPECT_TRUE(rates.series[2].dashed);
    EXPECT_EQ(rates.series[2].x, (std::vector<double>{1e-5, 1e-3}));
    const Plot& bits = pictures[1].second;
    EXPECT_EQ(bits.title, "By bits");
    EXPECT_EQ(bits.x.ticks, (std::vector<double>{2.5, 4.5}));
    EXPECT_EQ(bits.x.label, "bits a weight");
    ASSERT_EQ(bits.series.size(), 2u);
    EXPECT_EQ(bits.series[1].name, "qat 1e-5");
    EXPECT_EQ(bits.series[1].x, (std::vector<double>{2.5, 4.5}));
}

TEST(Study, WhatAFileMayNotSay) {
    auto refuses = [](const char* change, const std::vector<std::string>& parts) {
        StudyJson j = study_json();
        j.merge_patch(StudyJson::parse(change));
        try {
            parsed(j);
            ADD_FAILURE() << "accepted: " << change;
        } catch (const Error& e) {
            EXPECT_EQ(e.exit_code, 2) << e.what();
            const std::string what = e.what();
            EXPECT_EQ(what.rfind("some.json: ", 0), 0u) << what;
            for (const std::string& part : parts)
                EXPECT_NE(what.find(part), std::string::npos) << what << "\nlacks " << part;
        }
    };
    refuses(R"({"stage": {}})", {"stage: no such key", "did you mean stages"});
    refuses(R"({"seeds": null})", {"no `seeds`"});
    refuses(R"({"seeds": 0})", {"seeds: not a number of seeds"});
    refuses(R"({"seeds": [1, 1]})", {"1 is there twice"});
    refuses(R"({"seeds": -3})", {"seeds"});
    refuses(R"({"sweep_seed": 2})", {"one of the seeds"});
    refuses(R"({"seeds": [1, 1001]})", {"1001 is one of the seeds"});
    refuses(R"({"stages": {"a/b": {"command": "grpo"}}})", {"a stage's name is a file's"});
    refuses(R"({"all": {"threads": 1}})", {"the study gives its runs --threads itself"});
    refuses(R"({"evaluation": {"log_completions": false}})", {"what is compared are the completions"});
    refuses(R"({"evaluation": {"task": 5}})", {"evaluation.task: not a text"});
    refuses(R"({"evaluation": {"eval_text": "a.txt"}, "all": {"task": null}})", {"evaluation: no problems"});
    refuses(R"({"grid": {"bits": ["{bits}"]}})", {"has a brace"});
    refuses(R"({"arms": {"new": ["cold", "rll"]}})", {"arms.new", "no stage is called rll", "did you mean rl"});
    refuses(R"({"arms": {"new": "cold"}})", {"arms.new: not a list"});
    refuses(R"({"arms": {"new": []}})", {"arms.new: not a list"});
    refuses(R"({"stages": {"rl": {"command": "rl"}}})", {"stages.rl: unknown command 'rl'", "grpo"});
    refuses(R"({"stages": {"rl": {"command": "eval"}}})", {"stages.rl.command", "eval is no stage"});
    refuses(R"({"stages": {"rl": {"command": null}}})", {"stages.rl: no `command`"});
    refuses(R"({"stages": {"rl": {"learning_rat": 1}}})", {"stages.rl.learning_rat", "did you mean learning_rate"});
    refuses(R"({"stages": {"rl": {"teacher": "x"}}})", {"grpo has no --teacher"});
    refuses(R"({"stages": {"rl": {"output_dir": "x"}}})", {"the study gives its runs --output_dir itself"});
    refuses(R"({"stages": {"rl": {"learning_rate": [1]}}})", {"not a text, a number"});
    refuses(R"({"stages": {"qat": {"weights": "{bit}"}}})", {"no key of the grid is called bit", "did you mean bits"});
    refuses(R"({"all": {"teacher": "@fp"}})", {"all.teacher", "only a stage can refer to an arm"});
    refuses(R"({"evaluation": {"task": "{taks}"}})", {"evaluation.task", "no key of the grid is called taks"});
    refuses(R"({"stages": {"kd": {"teacher": "@fpp"}}})", {"no arm is called fpp", "did you mean fp"});
    refuses(R"({"stages": {"kd": {"teacher": "@kd"}}})", {"refers to itself"});
    refuses(R"({"stages": {"rl": {"sweep": {"learning_rate": [1]}}}})", {"two values"});
    refuses(R"({"stages": {"rl": {"sweep": {"learning_rate": [1, 2]}}}})", {"is given and swept"});
    refuses(R"({"stages": {"qat": {"sweep": {"learning_rate": [1, 2]}}}, "evaluation": {"eval_data": "x.jsonl"}})",
            {"sweep", "validation"});
    refuses(R"({"evaluation": {"learning_rate": 1}})", {"evaluation.learning_rate: eval has no"});
    refuses(R"({"compare": ["fp qat"]})", {"compare", "ARM - ARM"});
    refuses(R"({"compare": ["fp - qta"]})", {"no arm is called qta"});
    refuses(R"({"full": "fpp"})", {"full", "fpp"});
    refuses(R"({"grid": {"bits": []}})", {"grid.bits: not a list"});
    refuses(R"({"arms": {"fp": {"stages": ["cold"], "seed": 1}}})",
            {"arms.fp.seed: no such key", "did you mean seeds"});
    refuses(R"({"arms": {"fp": {"seeds": 1}}})", {"arms.fp: no `stages`"});
    refuses(R"({"arms": {"fp": {"stages": ["cold"], "seeds": 0}}})", {"arms.fp.seeds"});
    refuses(R"({"arms": {"fp": {"stages": ["cold"], "evaluation": {"max_steps": 1}}}})", {"eval has no --max_steps"});
    refuses(R"({"pictures": {"a/b": {"across": "bits", "arms": ["fp"]}}})", {"a picture's name is a file's"});
    refuses(R"({"pictures": {"": {"across": "bits", "arms": ["fp"]}}})", {"a picture's name is a file's"});
    refuses(R"({"pictures": {"p": {"across": "bit", "arms": ["fp"]}}})", {"pictures.p.across", "did you mean bits"});
    refuses(R"({"pictures": {"p": {"across": "bits", "arms": ["fpp"]}}})", {"pictures.p.arms", "did you mean fp"});
    refuses(R"({"pictures": {"p": {"arms": ["fp"]}}})", {"pictures.p: no `across`"});
    refuses(R"({"claims": {"A": {"claim": "x"}}})", {"claims.A: no rule", "kept_at_least"});
    refuses(R"({"claims": {"A": {"more": "fp - qat"}}})", {"claims.A: no `claim`"});
    refuses(R"({"claims": {"A": {"claim": "x", "more": "fp - qat", "equal": "fp - qat"}}})", {"a claim has one rule"});
    refuses(R"({"claims": {"A": {"claim": "x", "more": "fp"}}})", {"claims.A.more", "ARM - ARM"});
    refuses(R"({"claims": {"A": {"claim": "x", "more": "fp - qta"}}})", {"no arm is called qta", "did you mean qat"});
    refuses(R"({"claims": {"A": {"claim": "x", "more": "fp - qat int5:g32"}}})",
            {"no arm or cell is called qat int5:g32", "did you mean qat int4:g32"});
    refuses(R"({"claims": {"A": {"claim": "x", "more": "fp - qat", "margin": 5}}})", {"the rule more has no `margin`"});
    refuses(R"({"reported": {"fp int4:g32": "x"}})", {"reported", "fp int4:g32"});
    refuses(R"({"claims": {"A": {"claim": "x", "mor": "fp - qat"}}})",
            {"claims.A.mor: no such key", "did you mean more"});
    refuses(R"({"claims": {"A": {"claim": "x", "kept_below": "qat", "share": 60}}})", {"`start` and `full`"});
    refuses(R"({"claims": {"A": {"claim": "x", "kept_below": "qat"}}, "start": "start", "full": "fp"})",
            {"no `share`"});
    refuses(R"({"claims": {"A": {"claim": "x", "more": "fp - qat", "least": -1}}})",
            {"least: not a number of percent"});
    refuses(R"({"claims": {"A": {"claim": "x", "sooner": "fp - qat"}}})", {"no `curve`"});
    refuses(R"({"claims": {"A": {"claim": "x", "more": "fp - qat", "where": {"bit": ["x"]}}}})", {"did you mean bits"});
    refuses(R"({"claims": {"A": {"claim": "x", "more": "fp - qat", "where": {"bits": ["int4"]}}}})",
            {"no value of the grid is called int4"});
}
