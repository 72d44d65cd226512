// Studies: what a file may say, which runs it makes, and what they share (eval/study.h). No run is run here.
#include <gtest/gtest.h>
#include "../eval/study.h"

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
    EXPECT_EQ(s.sweep_seed, 1002u);
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
            EXPECT_EQ(of.flags["seed"], 1002);
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
}
