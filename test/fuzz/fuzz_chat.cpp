// A chat template to recognise, and messages and tools to render by every known one. A rendering is the same with the
// assistant's turn opened behind it; ChatML has every content as it is, and a conversation begins as its beginning
// does; JSON in a prompt is JSON again.
#include "../../data/chat_template.h"
#include "../../runtime/file_io.h"
#include "fuzz.h"

typedef nlohmann::ordered_json FuzzJson;

// nested as deep as rows may be (data/dataset.h); null: not JSON
static FuzzJson fuzz_json(const std::string& text) {
    auto shallow = [](int depth, FuzzJson::parse_event_t, FuzzJson&) {
        if (depth > 32) fail("too deep");
        return true;
    };
    try {
        return FuzzJson::parse(text, shallow);
    } catch (const Error&) {
    } catch (const FuzzJson::exception&) {}
    return FuzzJson();
}

static void fuzz_render(ChatTemplate kind, const FuzzJson& messages, const FuzzJson& tools) {
    std::string shut, open;
    if (!fuzz_accepts([&] { shut = chat_render(kind, messages, tools, false, -1); })) return;
    for (const int thinking : {-1, 0, 1}) {
        open = chat_render(kind, messages, tools, true, thinking);
        fuzz_require(open.size() > shut.size() && open.compare(0, shut.size(), shut) == 0, "a turn is opened behind");
    }
    if (kind != ChatTemplate::chatml) return;
    size_t at = 0;
    for (const FuzzJson& m : messages) {
        const std::string turn = m["role"].get<std::string>() + "\n" + m["content"].get<std::string>() + "<|im_end|>";
        at = shut.find(turn, at);
        fuzz_require(at != std::string::npos, "a message is in the text");
        at += turn.size();
    }
    if (messages.empty()) return;
    const FuzzJson before(messages.begin(), messages.end() - 1);
    const std::string begin = chat_render(kind, before, tools, false, -1);
    fuzz_require(shut.compare(0, begin.size(), begin) == 0, "a conversation begins as its beginning");
}

static int fuzz_chat(const uint8_t* data, size_t size) {
    FuzzFiles in = fuzz_files(data, size, "template");
    const ChatTemplate found = chat_template_detect(in["template"]);
    fuzz_require((found == ChatTemplate::none) == in["template"].empty(), "no template is no text");
    const FuzzJson messages = fuzz_json(in["messages"]), tools = fuzz_json(in["tools"]);
    for (int kind = 0; kind <= (int)ChatTemplate::llama3; kind++) fuzz_render((ChatTemplate)kind, messages, tools);
    const std::string python = python_json(messages);
    fuzz_require(FuzzJson::parse(python) == messages, "JSON in a prompt is the same JSON");
    return 0;
}
FUZZ_TARGET(chat)
