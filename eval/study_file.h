// The file of a study: stages, arms, a grid, claims, read and checked before anything runs. docs/study.md tells users of it,
// study.h what is made of it.
//
//   stage   a command with its flags; "{bits}" in a flag is the value of the grid's key `bits`, "@ARM" what that arm ends in.
//           `all` are flags of every stage, `evaluation` those by which the end of every arm is measured
//   arm     the stages that lead to it, one after the other, each from the last checkpoint of the one before
//   sweep   values of a flag of which each cell takes the one that did best with a seed of its own on validation problems
//   claim   what is said of arms, with the rule that decides it (study_claims.h)
#pragma once
#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>
#include "../runtime/json.h"
#include "../runtime/options.h"
#include "../runtime/run_dir.h"

typedef nlohmann::ordered_json StudyJson;

struct StudyStage {
    std::string name;
    Command command = COMMAND_GRPO;
    StudyJson flags = StudyJson::object();
    std::string sweep;             // a flag; empty: none
    std::vector<StudyJson> tried;  // its values
};

struct StudyArm {
    std::string name;
    std::vector<std::string> stages;
    StudyJson evaluation = StudyJson::object();  // flags beside the study's
    size_t seeds = 0;                            // so many of the first; 0: all
};

struct StudyPair {
    std::string better, worse;  // arms; of claims: or cells, or "": no second
};

// values by key
typedef std::vector<std::pair<std::string, std::vector<std::string>>> StudyGrid;

// What is claimed, and how it is decided: eval/study_claims.h
struct StudyClaim {
    std::string id, from, text;
    std::string rule;              // a name of study_rules
    std::vector<StudyPair> pairs;  // what the rule is about
    double bound = 0.0;            // what the rule measures by, as its row says
    std::string curve;             // a number of each step
    StudyGrid where;               // values that count
};

// Ways to decide a claim. `of`: what stands beside the rule's name in the file; `bound`: the key of what is measured by
struct StudyRule {
    const char *name, *of, *bound;
    double usual;  // the bound unless given; NAN: it has to be
};
inline constexpr StudyRule study_rules[] = {
    {"more", "pair", "least", 1.0},             // the first is better, by `least` points
    {"equal", "pair", "margin", 2.0},           // they differ by less than `margin` points
    {"not_below", "pair", "margin", 2.0},       // the first is not worse by `margin` points
    {"kept_at_least", "arm", "share", NAN},     // of the gain of the study, in percent
    {"kept_below", "arm", "share", NAN},        //
    {"sooner", "pair", "share", 90.0},          // to `share` percent of the way that the second's curve goes
    {"order", "arms", "", 0.0},                 // each better than the next, at each point of the grid
    {"follows_cells", "arms", "", 0.0},         // what is kept goes with the cells crossed rather than with the rate
    {"foretold_by_coverage", "pairs", "", 0.0}  // the gain goes with the start's pass@K rather than with its pass@1
};

// Arms as lines of a chart along one key of the grid: eval/study_pictures.h
struct StudyPicture {
    std::string name, title, across;
    std::vector<std::string> arms;
};

struct Study {
    std::string name, file, title, about;
    std::string model;  // what all arms begin with; empty: the embedded model
    std::vector<uint64_t> seeds;
    uint64_t sweep_seed = 1001;  // whatever the seeds, so that more of them change no choice
    StudyJson all = StudyJson::object(), evaluation = StudyJson::object(), validation = StudyJson::object();  // flags
    StudyJson drift;  // flags of eval --against, how far each cell is from `full`; null: that is not measured
    std::vector<StudyStage> stages;
    std::vector<StudyArm> arms;
    StudyGrid grid;
    std::vector<StudyPair> pairs;
    std::string start, full;  // arms between which the share of the gain is measured; empty: it is not
    std::vector<StudyClaim> claims;
    std::vector<StudyPicture> pictures;
    std::map<std::string, std::string> reported;  // by cell or arm: what a paper says of it

    size_t seeds_of(const StudyArm& arm) const {
        return arm.seeds == 0 ? seeds.size() : std::min(arm.seeds, seeds.size());
    }
    const StudyStage& stage(const std::string& of) const {
        for (const StudyStage& s : stages)
            if (s.name == of) return s;
        fail("no stage is called %s", of.c_str());
    }
    const StudyArm& arm(const std::string& of) const {
        for (const StudyArm& a : arms)
            if (a.name == of) return a;
        fail("no arm is called %s", of.c_str());
    }
};

// where in the file something is wrong: "FILE: arms.qat"
struct StudyPlace {
    std::string at;
    StudyPlace operator/(const std::string& key) const {
        return {at + (at.size() > 1 && at[at.size() - 1] == ' ' ? "" : ".") + printable(key)};
    }
};

inline void study_keys(const StudyPlace& place, const StudyJson& j, const std::vector<std::string>& known) {
    if (!j.is_object()) fail_usage("%s: not an object", place.at.c_str());
    for (const auto& item : j.items())
        if (std::find(known.begin(), known.end(), item.key()) == known.end())
            fail_usage("%s: no such key; there are %s%s", (place / item.key()).at.c_str(), join_words(known).c_str(),
                       did_you_mean(item.key(), known).c_str());
}

inline std::string study_text(const StudyPlace& place, const StudyJson& j) {
    if (!j.is_string()) fail_usage("%s: not a text", place.at.c_str());
    return j.get<std::string>();
}

inline std::vector<std::string> study_texts(const StudyPlace& place, const StudyJson& j) {
    if (!j.is_array() || j.empty()) fail_usage("%s: not a list of texts", place.at.c_str());
    std::vector<std::string> out;
    for (const StudyJson& x : j) out.push_back(study_text(place, x));
    return out;
}

// flags that a study gives its runs itself, or that a run of one cannot have
inline constexpr const char* study_own_flags[] = {"model",  "seed",   "output_dir", "overwrite_output_dir",
                                                  "config", "resume", "threads",    "resume_from_checkpoint",
                                                  "plan",   "against"};

// A stage or a picture by whose name files are called
inline void study_check_file_name(const StudyPlace& place, const char* what, const std::string& name) {
    auto of_file = [](unsigned char c) { return isalnum(c) || c == '-' || c == '_'; };
    if (name.empty() || !std::all_of(name.begin(), name.end(), of_file))
        fail_usage("%s: a %s's name is a file's; letters, digits, - and _ alone", place.at.c_str(), what);
}

inline void study_flag(const StudyPlace& place, const std::string& flag, const StudyJson& value) {
    std::vector<std::string> known;
    for (const OptionRow& row : option_rows)
        if (row.name) known.push_back(row.name);
    if (option_index(flag) < 0)
        fail_usage("%s: no flag is called so%s", place.at.c_str(), did_you_mean(flag, known).c_str());
    for (const char* own : study_own_flags)
        if (flag == own) fail_usage("%s: the study gives its runs --%s itself", place.at.c_str(), own);
    if (!value.is_string() && !value.is_number() && !value.is_boolean())
        fail_usage("%s: not a text, a number, true or false", place.at.c_str());
}

inline StudyJson study_flags(const StudyPlace& place, const StudyJson& j) {
    if (!j.is_object()) fail_usage("%s: not an object of flags", place.at.c_str());
    for (const auto& item : j.items()) study_flag(place / item.key(), item.key(), item.value());
    return j;
}

inline StudyStage study_stage(const StudyPlace& place, const std::string& name, const StudyJson& j) {
    StudyStage s;
    s.name = name;
    study_check_file_name(place, "stage", name);
    if (!j.is_object() || !j.contains("command")) fail_usage("%s: no `command`", place.at.c_str());
    s.command = parse_command(study_text(place / "command", j["command"]), place.at + ": ");
    if (!((IN_TRAIN | IN_QUANTIZE) >> s.command & 1))
        fail_usage("%s: %s is no stage; %s are", (place / "command").at.c_str(), command_rows[s.command].name,
                   command_names(IN_TRAIN | IN_QUANTIZE).c_str());
    for (const auto& item : j.items()) {
        const StudyPlace at = place / item.key();
        if (item.key() == "command") continue;
        if (item.key() != "sweep") {
            study_flag(at, item.key(), item.value());
            if (!(option_rows[option_index(item.key())].commands >> s.command & 1))
                fail_usage("%s: %s has no --%s", at.at.c_str(), command_rows[s.command].name, item.key().c_str());
            s.flags[item.key()] = item.value();
            continue;
        }
        if (!item.value().is_object() || item.value().size() != 1)
            fail_usage("%s: not one flag with the values to try", at.at.c_str());
        s.sweep = item.value().begin().key();
        const StudyJson& tried = item.value().begin().value();
        if (!tried.is_array() || tried.size() < 2) fail_usage("%s: not two values or more", (at / s.sweep).at.c_str());
        for (const StudyJson& value : tried) {
            study_flag(at / s.sweep, s.sweep, value);
            s.tried.push_back(value);
        }
    }
    if (!s.sweep.empty() && s.flags.contains(s.sweep))
        fail_usage("%s: --%s is given and swept; leave one out", place.at.c_str(), s.sweep.c_str());
    return s;
}

// the grid's keys that a text has in braces
inline std::set<std::string> study_keys_in(const StudyJson& value) {
    std::set<std::string> keys;
    if (!value.is_string()) return keys;
    const std::string s = value.get<std::string>();
    for (size_t at = 0; (at = s.find('{', at)) != std::string::npos; at++)
        if (const size_t end = s.find('}', at); end != std::string::npos) keys.insert(s.substr(at + 1, end - at - 1));
    return keys;
}

inline std::vector<uint64_t> study_seeds(const StudyPlace& place, const StudyJson& j) {
    auto whole = [](const StudyJson& x) { return x.is_number_integer() && x.get<double>() >= 0; };
    std::vector<uint64_t> out;
    if (whole(j) && j.get<double>() <= 1000)
        for (uint64_t i = 1; i <= j.get<uint64_t>(); i++) out.push_back(i);
    else if (j.is_array())
        for (const StudyJson& x : j) {
            if (!whole(x)) fail_usage("%s: not whole numbers", place.at.c_str());
            if (std::find(out.begin(), out.end(), x.get<uint64_t>()) != out.end())
                fail_usage("%s: %llu is there twice", place.at.c_str(), (unsigned long long)x.get<uint64_t>());
            out.push_back(x.get<uint64_t>());
        }
    if (out.empty()) fail_usage("%s: not a number of seeds, or a list of them", place.at.c_str());
    return out;
}

// what a stage refers to by "@ARM"; empty: it does not
inline std::string study_reference(const StudyJson& value) {
    if (!value.is_string()) return "";
    const std::string s = value.get<std::string>();
    return s.size() > 1 && s[0] == '@' ? s.substr(1) : "";
}

// whether an arm needs, over stages that refer to others, itself
inline void study_check_circle(const Study& s, const StudyPlace& place, const std::string& arm,
                               std::vector<std::string> above) {
    if (std::find(above.begin(), above.end(), arm) != above.end())
        fail_usage("%s: it refers to itself: @%s", (place / above[0]).at.c_str(), join_words(above, ", @").c_str());
    above.push_back(arm);
    for (const std::string& stage : s.arm(arm).stages)
        for (const auto& flag : s.stage(stage).flags.items())
            if (const std::string to = study_reference(flag.value()); !to.empty())
                study_check_circle(s, place, to, above);
}

// the keys of the grid that an arm's stages, those of arms they refer to, and what all have in common need
inline std::set<std::string> study_arm_keys(const Study& s, const StudyArm& arm) {
    std::set<std::string> keys;
    auto add = [&](const StudyJson& flags) {
        for (const auto& flag : flags.items()) {
            for (const std::string& key : study_keys_in(flag.value())) keys.insert(key);
            if (const std::string to = study_reference(flag.value()); !to.empty())
                for (const std::string& key : study_arm_keys(s, s.arm(to))) keys.insert(key);
        }
    };
    for (const std::string& name : arm.stages) add(s.stage(name).flags);
    add(s.all), add(s.evaluation), add(arm.evaluation);
    return keys;
}

typedef std::vector<std::pair<std::string, std::string>> StudyPoint;  // a value by key

// the points of the grid at which an arm is repeated
inline std::vector<StudyPoint> study_points(const Study& s, const StudyArm& arm) {
    const std::set<std::string> keys = study_arm_keys(s, arm);
    std::vector<StudyPoint> points = {{}};
    for (const auto& [key, values] : s.grid) {
        if (!keys.count(key)) continue;
        std::vector<StudyPoint> longer;
        for (const StudyPoint& point : points)
            for (const std::string& value : values) {
                longer.push_back(point);
                longer.back().push_back({key, value});
            }
        points = longer;
    }
    return points;
}

inline std::string study_cell_name(const StudyArm& arm, const StudyPoint& point) {
    std::string name = arm.name;
    for (const auto& [key, value] : point) name += " " + value;
    return name;
}

// The arm of a side of a claim, which is an arm or one of its cells by its name; null: none is called so
inline const StudyArm* study_side_arm(const Study& s, const std::string& side) {
    for (const StudyArm& arm : s.arms) {
        if (side == arm.name) return &arm;
        if (side.rfind(arm.name + " ", 0) != 0) continue;
        for (const StudyPoint& point : study_points(s, arm))
            if (side == study_cell_name(arm, point)) return &arm;
    }
    return nullptr;
}
inline bool study_side_known(const Study& s, const std::string& side) { return study_side_arm(s, side); }

inline void study_known(const StudyPlace& place, const char* what, const std::string& name,
                        const std::vector<std::string>& names) {
    if (std::find(names.begin(), names.end(), name) == names.end())
        fail_usage("%s: no %s is called %s; there are %s%s", place.at.c_str(), what, printable(name).c_str(),
                   join_words(names).c_str(), did_you_mean(name, names).c_str());
}

// whether the arms, and what their stages refer to, are there
inline void study_check_arms(const Study& s, const StudyPlace& file) {
    std::vector<std::string> stages, arms, keys;
    for (const StudyStage& x : s.stages) stages.push_back(x.name);
    for (const StudyArm& x : s.arms) arms.push_back(x.name);
    for (const auto& x : s.grid) keys.push_back(x.first);
    const auto known = study_known;
    for (const StudyArm& arm : s.arms)
        for (const std::string& stage : arm.stages) known(file / "arms" / arm.name, "stage", stage, stages);
    auto flags_know = [&](const StudyPlace& place, const StudyJson& flags, bool of_stage) {
        for (const auto& flag : flags.items()) {
            for (const std::string& key : study_keys_in(flag.value()))
                known(place / flag.key(), "key of the grid", key, keys);
            const std::string to = study_reference(flag.value());
            if (to.empty()) continue;
            if (!of_stage) fail_usage("%s: only a stage can refer to an arm", (place / flag.key()).at.c_str());
            known(place / flag.key(), "arm", to, arms);
        }
    };
    for (const StudyStage& stage : s.stages) flags_know(file / "stages" / stage.name, stage.flags, true);
    flags_know(file / "all", s.all, false), flags_know(file / "evaluation", s.evaluation, false);
    flags_know(file / "validation", s.validation, false);
    if (!s.drift.is_null()) flags_know(file / "drift", s.drift, false);
    for (const StudyArm& arm : s.arms) flags_know(file / "arms" / arm.name / "evaluation", arm.evaluation, false);
    for (const std::string& arm : arms) study_check_circle(s, file / "arms", arm, {});
}

// whether what is asked of the arms is asked of some that are there
inline void study_check_names(const Study& s, const StudyPlace& file) {
    std::vector<std::string> arms, keys;
    for (const StudyArm& x : s.arms) arms.push_back(x.name);
    for (const auto& x : s.grid) keys.push_back(x.first);
    const auto known = study_known;
    auto side_known = [&](const StudyPlace& place, const std::string& side) {
        if (side.empty() || study_side_known(s, side)) return;
        std::vector<std::string> names = arms;
        for (const StudyArm& arm : s.arms)  // of one whose name it begins with, its cells
            if (side.rfind(arm.name + " ", 0) == 0)
                for (const StudyPoint& point : study_points(s, arm)) names.push_back(study_cell_name(arm, point));
        known(place, names.size() > arms.size() ? "arm or cell" : "arm", side, names);
    };
    for (const StudyPair& pair : s.pairs)
        for (const std::string& arm : {pair.better, pair.worse}) known(file / "compare", "arm", arm, arms);
    for (const StudyClaim& claim : s.claims) {
        const StudyPlace place = file / "claims" / claim.id;
        for (const StudyPair& pair : claim.pairs)
            for (const std::string& side : {pair.better, pair.worse}) side_known(place / claim.rule, side);
        for (const auto& [key, values] : claim.where) {
            known(place / "where", "key of the grid", key, keys);
            for (const auto& [its, there] : s.grid)
                if (its == key)
                    for (const std::string& value : values)
                        known(place / "where" / key, "value of the grid", value, there);
        }
        if (claim.rule.rfind("kept", 0) == 0 || claim.rule == "follows_cells")
            if (s.start.empty() || s.full.empty())
                fail_usage("%s: what of the gain is kept needs the study's `start` and `full`", place.at.c_str());
    }
    for (const auto& [key, arm] : {std::pair("start", s.start), {"full", s.full}})
        if (!arm.empty()) known(file / key, "arm", arm, arms);
    for (const auto& said : s.reported) side_known(file / "reported", said.first);
    for (const StudyPicture& picture : s.pictures) {
        const StudyPlace place = file / "pictures" / picture.name;
        known(place / "across", "key of the grid", picture.across, keys);
        for (const std::string& arm : picture.arms) known(place / "arms", "arm", arm, arms);
    }
}

inline StudyPicture study_picture(const StudyPlace& place, const std::string& name, const StudyJson& j) {
    study_keys(place, j, {"title", "across", "arms"});
    for (const char* needed : {"across", "arms"})
        if (!j.contains(needed)) fail_usage("%s: no `%s`", place.at.c_str(), needed);
    study_check_file_name(place, "picture", name);
    const std::string title = j.contains("title") ? study_text(place / "title", j["title"]) : name;
    return {name, title, study_text(place / "across", j["across"]), study_texts(place / "arms", j["arms"])};
}

// An arm's stages, or an object of them with what is its own
inline StudyArm study_arm(const StudyPlace& place, const std::string& name, const StudyJson& j) {
    StudyArm arm;
    arm.name = name;
    if (!j.is_object()) {
        arm.stages = study_texts(place, j);
        return arm;
    }
    study_keys(place, j, {"stages", "evaluation", "seeds"});
    if (!j.contains("stages")) fail_usage("%s: no `stages`", place.at.c_str());
    arm.stages = study_texts(place / "stages", j["stages"]);
    if (j.contains("evaluation")) arm.evaluation = study_flags(place / "evaluation", j["evaluation"]);
    if (j.contains("seeds")) {
        if (!j["seeds"].is_number_integer() || j["seeds"].get<double>() < 1 || j["seeds"].get<double>() > 1000)
            fail_usage("%s: not a number of seeds", (place / "seeds").at.c_str());
        arm.seeds = j["seeds"].get<size_t>();
    }
    return arm;
}

// "ARM - ARM"
inline StudyPair study_pair(const StudyPlace& place, const std::string& text) {
    const size_t middle = text.find(" - ");
    if (middle == std::string::npos)
        fail_usage("%s: %s is not of the form \"ARM - ARM\", the one that is claimed to be better first",
                   place.at.c_str(), shown(text).c_str());
    return {text.substr(0, middle), text.substr(middle + 3)};
}

inline std::vector<std::pair<std::string, std::vector<std::string>>> study_grid(const StudyPlace& place,
                                                                                const StudyJson& j) {
    StudyGrid grid;
    if (!j.is_object()) fail_usage("%s: not an object of lists", place.at.c_str());
    for (const auto& item : j.items()) {
        grid.push_back({item.key(), study_texts(place / item.key(), item.value())});
        for (const std::string& value : grid.back().second)
            if (value.find_first_of("{}") != std::string::npos)
                fail_usage("%s: %s has a brace, which is for keys of the grid", (place / item.key()).at.c_str(),
                           shown(value).c_str());
    }
    return grid;
}

inline double study_percent(const StudyPlace& place, const StudyJson& j) {
    if (!j.is_number() || !(j.get<double>() >= 0.0) || j.get<double>() > 1000.0)
        fail_usage("%s: not a number of percent", place.at.c_str());
    return j.get<double>();
}

inline StudyClaim study_claim(const StudyPlace& place, const std::string& id, const StudyJson& j) {
    StudyClaim claim;
    claim.id = id;
    std::vector<std::string> keys = {"from", "claim", "curve", "where"}, rules;
    for (const StudyRule& rule : study_rules) {
        rules.push_back(rule.name);
        keys.push_back(rule.name);
        if (*rule.bound && std::find(keys.begin(), keys.end(), rule.bound) == keys.end()) keys.push_back(rule.bound);
    }
    study_keys(place, j, keys);
    for (const StudyRule& rule : study_rules) {
        if (!j.contains(rule.name)) continue;
        if (!claim.rule.empty())
            fail_usage("%s: both %s and %s; a claim has one rule", place.at.c_str(), claim.rule.c_str(), rule.name);
        claim.rule = rule.name, claim.bound = rule.usual;
        const StudyPlace at = place / rule.name;
        const std::string of = rule.of;
        if (of == "pair") claim.pairs.push_back(study_pair(at, study_text(at, j[rule.name])));
        else if (of == "arm") claim.pairs.push_back({study_text(at, j[rule.name]), ""});
        else
            for (const std::string& text : study_texts(at, j[rule.name]))
                claim.pairs.push_back(of == "pairs" ? study_pair(at, text) : StudyPair{text, ""});
        if (*rule.bound && j.contains(rule.bound)) claim.bound = study_percent(place / rule.bound, j[rule.bound]);
        else if (std::isnan(rule.usual)) fail_usage("%s: no `%s`", place.at.c_str(), rule.bound);
        for (const StudyRule& other : study_rules)
            if (*other.bound && std::string(other.bound) != rule.bound && j.contains(other.bound))
                fail_usage("%s: the rule %s has no `%s`", (place / other.bound).at.c_str(), rule.name, other.bound);
    }
    if (claim.rule.empty())
        fail_usage("%s: no rule that decides it; one of %s", place.at.c_str(), join_words(rules).c_str());
    if (!j.contains("claim")) fail_usage("%s: no `claim`, what it says", place.at.c_str());
    claim.text = study_text(place / "claim", j["claim"]);
    if (j.contains("from")) claim.from = study_text(place / "from", j["from"]);
    if (j.contains("curve")) claim.curve = study_text(place / "curve", j["curve"]);
    if ((claim.rule == "sooner") == claim.curve.empty())
        fail_usage("%s: %s", place.at.c_str(),
                   claim.curve.empty() ? "no `curve`: which number of each step, such as kd/divergence"
                                       : "`curve` is for the rule sooner");
    if (j.contains("where")) claim.where = study_grid(place / "where", j["where"]);
    return claim;
}

// The quick form: `quick` says what stands in place of what the file has, and which arms remain; comparisons and claims
// that need others are left out
inline StudyJson study_quick(const StudyPlace& place, StudyJson j) {
    if (!j.contains("quick")) fail_usage("%sno `quick`; leave --quick out", place.at.c_str());
    const StudyJson quick = j["quick"];
    const StudyPlace at = place / "quick";
    study_keys(at, quick, {"seeds", "arms", "grid", "all", "evaluation", "stages"});
    if (quick.contains("seeds")) j["seeds"] = quick["seeds"];
    for (const char* flags : {"grid", "all", "evaluation"})
        if (quick.contains(flags)) {
            if (!quick[flags].is_object()) fail_usage("%s: not an object", (at / flags).at.c_str());
            for (const auto& item : quick[flags].items()) j[flags][item.key()] = item.value();
        }
    auto object = [](const StudyPlace& its, const StudyJson& what) {
        if (!what.is_object()) fail_usage("%s: not an object", its.at.c_str());
    };
    for (const char* needed : {"stages", "arms"}) {
        if (!j.contains(needed)) fail_usage("%sno `%s`", place.at.c_str(), needed);
        object(place / needed, j[needed]);
    }
    if (quick.contains("stages")) {
        object(at / "stages", quick["stages"]);
        for (const auto& stage : quick["stages"].items()) {
            if (!j["stages"].contains(stage.key()))
                fail_usage("%s: no stage is called so", (at / "stages" / stage.key()).at.c_str());
            object(at / "stages" / stage.key(), stage.value());
            object(place / "stages" / stage.key(), j["stages"][stage.key()]);
            StudyJson& its = j["stages"][stage.key()];
            for (const auto& flag : stage.value().items()) {
                its[flag.key()] = flag.value();
                if (its.contains("sweep") && its["sweep"].contains(flag.key())) its.erase("sweep");
            }
        }
    }
    if (quick.contains("arms")) {
        const std::vector<std::string> kept = study_texts(at / "arms", quick["arms"]);
        StudyJson arms = StudyJson::object();
        for (const std::string& arm : kept) {
            if (!j["arms"].contains(arm)) fail_usage("%s: no arm is called %s", (at / "arms").at.c_str(), arm.c_str());
            arms[arm] = j["arms"][arm];
        }
        j["arms"] = arms;
    }
    return j;
}

// pictures without the arms that are not there, and none that is empty
inline void study_drop_lines(Study& s) {
    for (StudyPicture& p : s.pictures)
        p.arms.erase(std::remove_if(p.arms.begin(), p.arms.end(),
                                    [&](const std::string& arm) {
                                        return std::none_of(s.arms.begin(), s.arms.end(),
                                                            [&](const StudyArm& a) { return a.name == arm; });
                                    }),
                     p.arms.end());
    s.pictures.erase(std::remove_if(s.pictures.begin(), s.pictures.end(), [](const auto& p) { return p.arms.empty(); }),
                     s.pictures.end());
}

// With --quick: stages that no arm has
inline void study_drop_stages(Study& s) {
    auto unused = [&](const StudyStage& stage) {
        return std::none_of(s.arms.begin(), s.arms.end(), [&](const StudyArm& arm) {
            return std::find(arm.stages.begin(), arm.stages.end(), stage.name) != arm.stages.end();
        });
    };
    s.stages.erase(std::remove_if(s.stages.begin(), s.stages.end(), unused), s.stages.end());
}

// With --quick: what needs arms or values of the grid that are not there is left out
inline void study_drop_unknown(Study& s) {
    auto gone = [&](const StudyPair& pair) {
        return !study_side_known(s, pair.better) || (!pair.worse.empty() && !study_side_known(s, pair.worse));
    };
    auto undecidable = [&](StudyClaim& c) {
        for (auto& [key, values] : c.where) {
            const auto in_grid = [&, key = key](const std::string& value) {
                for (const auto& [its, there] : s.grid)
                    if (its == key) return std::find(there.begin(), there.end(), value) != there.end();
                return true;  // no key of the grid: that is said later
            };
            values.erase(std::remove_if(values.begin(), values.end(), [&](const auto& v) { return !in_grid(v); }),
                         values.end());
            if (values.empty()) return true;
        }
        return std::any_of(c.pairs.begin(), c.pairs.end(), gone);
    };
    s.pairs.erase(std::remove_if(s.pairs.begin(), s.pairs.end(), gone), s.pairs.end());
    s.claims.erase(std::remove_if(s.claims.begin(), s.claims.end(), undecidable), s.claims.end());
    for (auto said = s.reported.begin(); said != s.reported.end();)
        said = study_side_known(s, said->first) ? std::next(said) : s.reported.erase(said);
    study_drop_lines(s);
}

// These claims alone, with the arms that they need: their sides, the ends of the gain, and what those refer to
inline void study_keep_claims(Study& s, const std::vector<std::string>& ids) {
    std::vector<std::string> known;
    std::vector<StudyClaim> kept;
    for (const StudyClaim& claim : s.claims) {
        known.push_back(claim.id);
        if (std::find(ids.begin(), ids.end(), claim.id) != ids.end()) kept.push_back(claim);
    }
    for (const std::string& id : ids)
        if (std::find(known.begin(), known.end(), id) == known.end())
            fail_usage("--claims %s: %s", printable(id).c_str(),
                       known.empty()
                           ? "the study has no claims"
                           : ("no such claim; there are " + join_words(known) + did_you_mean(id, known)).c_str());
    std::set<std::string> needed;
    std::vector<std::string> todo = {s.start, s.full};
    for (const StudyClaim& claim : kept)
        for (const StudyPair& pair : claim.pairs)
            for (const std::string& side : {pair.better, pair.worse})
                if (const StudyArm* arm = study_side_arm(s, side)) todo.push_back(arm->name);
    while (!todo.empty()) {
        const std::string name = todo.back();
        todo.pop_back();
        if (name.empty() || !needed.insert(name).second) continue;
        for (const std::string& stage : s.arm(name).stages)
            for (const auto& flag : s.stage(stage).flags.items())
                if (const std::string to = study_reference(flag.value()); !to.empty()) todo.push_back(to);
    }
    auto other = [&](const std::string& arm) { return !needed.count(arm); };
    s.claims = kept;
    s.arms.erase(std::remove_if(s.arms.begin(), s.arms.end(), [&](const StudyArm& a) { return other(a.name); }),
                 s.arms.end());
    s.pairs.erase(std::remove_if(s.pairs.begin(), s.pairs.end(),
                                 [&](const StudyPair& p) { return other(p.better) || other(p.worse); }),
                  s.pairs.end());
    study_drop_lines(s);
}

inline void study_of_eval(const StudyPlace& at, const StudyJson& flags) {
    for (const auto& flag : flags.items())
        if (!(option_rows[option_index(flag.key())].commands & IN_EVAL))
            fail_usage("%s: eval has no --%s", (at / flag.key()).at.c_str(), flag.key().c_str());
    if (flags.contains("log_completions"))
        fail_usage("%s: what is compared are the completions", (at / "log_completions").at.c_str());
}

// how arms are measured, and with what flags all stages run
inline void study_evaluations(Study& s, const StudyPlace& place, const StudyJson& j) {
    if (j.contains("all")) s.all = study_flags(place / "all", j["all"]);
    for (const auto& [key, flags] :
         {std::pair("evaluation", &s.evaluation), {"validation", &s.validation}, {"drift", &s.drift}}) {
        if (!j.contains(key)) continue;
        *flags = study_flags(place / key, j[key]);
        study_of_eval(place / key, *flags);
    }
    if (!s.drift.is_null() && s.full.empty())
        fail_usage("%s: the distance from `full` needs it", (place / "drift").at.c_str());
    auto asks = [](const StudyJson& flags) { return flags.contains("task") || flags.contains("eval_data"); };
    if (s.evaluation.contains("eval_text") && !asks(s.evaluation) && !asks(s.all))
        fail_usage("%s: no problems; name some by task or eval_data", (place / "evaluation").at.c_str());
    if (s.evaluation.contains("task")) study_text(place / "evaluation" / "task", s.evaluation["task"]);
}

inline Study study_parse(const StudyJson& given, const std::string& file, bool quick = false) {
    const StudyPlace place{printable(file, 400) + ": "};
    study_keys(place, given,
               {"title", "about", "model", "seeds", "sweep_seed", "all", "stages", "arms", "grid", "evaluation",
                "validation", "compare", "start", "full", "claims", "quick", "reported", "drift", "pictures"});
    const StudyJson j = quick ? study_quick(place, given) : given;
    for (const char* needed : {"seeds", "stages", "arms"})
        if (!j.contains(needed)) fail_usage("%sno `%s`", place.at.c_str(), needed);
    Study s;
    s.file = file;
    s.name = std::filesystem::path(file).stem().string();
    for (const auto& [key, text] : {std::pair("title", &s.title),
                                    {"about", &s.about},
                                    {"model", &s.model},
                                    {"start", &s.start},
                                    {"full", &s.full}})
        if (j.contains(key)) *text = study_text(place / key, j[key]);
    s.seeds = study_seeds(place / "seeds", j["seeds"]);
    if (j.contains("sweep_seed"))
        s.sweep_seed = study_seeds(place / "sweep_seed", StudyJson::array({j["sweep_seed"]}))[0];
    if (std::find(s.seeds.begin(), s.seeds.end(), s.sweep_seed) != s.seeds.end())
        fail_usage("%s: %llu is one of the seeds; what chooses a value is not used again",
                   (place / "sweep_seed").at.c_str(), (unsigned long long)s.sweep_seed);
    study_evaluations(s, place, j);
    for (const char* list : {"stages", "arms"})
        if (!j[list].is_object() || j[list].empty()) fail_usage("%s: not an object of them", (place / list).at.c_str());
    for (const auto& item : j["stages"].items())
        s.stages.push_back(study_stage(place / "stages" / item.key(), item.key(), item.value()));
    for (const auto& item : j["arms"].items())
        s.arms.push_back(study_arm(place / "arms" / item.key(), item.key(), item.value()));
    if (j.contains("grid")) s.grid = study_grid(place / "grid", j["grid"]);
    if (j.contains("compare"))
        for (const std::string& text : study_texts(place / "compare", j["compare"]))
            s.pairs.push_back(study_pair(place / "compare", text));
    if (j.contains("claims")) {
        if (!j["claims"].is_object()) fail_usage("%s: not an object of claims", (place / "claims").at.c_str());
        for (const auto& item : j["claims"].items())
            s.claims.push_back(study_claim(place / "claims" / item.key(), item.key(), item.value()));
    }
    if (j.contains("reported")) {
        if (!j["reported"].is_object()) fail_usage("%s: not an object of texts", (place / "reported").at.c_str());
        for (const auto& item : j["reported"].items())
            s.reported[item.key()] = study_text(place / "reported" / item.key(), item.value());
    }
    if (j.contains("pictures")) {
        if (!j["pictures"].is_object()) fail_usage("%s: not an object of pictures", (place / "pictures").at.c_str());
        for (const auto& item : j["pictures"].items())
            s.pictures.push_back(study_picture(place / "pictures" / item.key(), item.key(), item.value()));
    }
    if (quick) study_drop_stages(s);
    study_check_arms(s, place);
    if (quick) study_drop_unknown(s);
    study_check_names(s, place);
    for (const StudyArm& arm : s.arms) study_of_eval(place / "arms" / arm.name / "evaluation", arm.evaluation);
    for (const StudyStage& stage : s.stages)
        if (!stage.sweep.empty() && s.validation.empty() && s.evaluation.contains("eval_data"))
            fail_usage(
                "%s: what it is to be chosen on is not known; name other problems than the evaluation's in "
                "`validation`",
                (place / "stages" / stage.name / "sweep").at.c_str());
    return s;
}
