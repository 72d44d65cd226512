// A command line, one argument a line, and the text of --config. Errors are of bad use; options written as JSON and
// read by --config are the same; the rules of a quantizer, written in canonical text, are a fixed point.
#include "../../model/quantizer_rules.h"
#include "../../rewards/rewards.h"
#include "../../runtime/options.h"
#include "fuzz.h"

static int fuzz_options(const uint8_t* data, size_t size) {
    static const FuzzFolder folder;
    const FuzzFiles in = fuzz_files(data, size, "args");
    folder.put(in, {"run.json"});
    std::vector<std::string> args;
    auto lines = in.find("args");
    for (size_t at = 0; lines != in.end() && at < lines->second.size() && args.size() < 64;) {
        const size_t end = std::min(lines->second.find('\n', at), lines->second.size());
        args.push_back(lines->second.substr(at, end - at));
        at = end + 1;
        if (args.back().compare(0, 8, "--config") == 0) args.pop_back();  // of another file
    }
    if (in.count("run.json")) args.push_back("--config=" + folder / "run.json");
    Options o;
    if (!fuzz_accepts([&] { o = parse_options(args); })) return 0;
    if (o.action != OPTIONS_RUN) {
        fuzz_require(!options_answer(o).empty(), "help is given");
        return 0;
    }
    fuzz_require(!options_print(o).empty(), "options are shown");
    const nlohmann::ordered_json j = options_to_json(o);
    std::string text;
    // file names may be any bytes, JSON cannot hold them
    try {
        text = j.dump();
    } catch (const nlohmann::json::exception&) { return 0; }
    folder.put("again.json", text);
    const Options r = parse_options({"--config=" + folder / "again.json"});
    fuzz_require(options_to_json(r).dump() == text, "options from their JSON are the same");
    for (const auto& [flag, value] :
         {std::pair{"weights", o.weights}, std::pair{"activations", o.activations}, std::pair{"kv_cache", o.kv_cache}})
        fuzz_accepts([&, flag = flag, value = value] {
            const std::string rules = rules_text(rules_parse(value, flag));
            fuzz_require(rules_text(rules_parse(rules, flag)) == rules, "rules are a fixed point: " + rules);
        });
    fuzz_accepts([&] { rewards_parse(o.reward_funcs, o.reward_weights); });
    return 0;
}
FUZZ_TARGET(options)
