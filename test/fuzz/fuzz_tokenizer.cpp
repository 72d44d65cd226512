// tokenizer.json and the files beside it, and the file `text`, which is encoded by it. In a vocabulary "@bytes" stands
// for the 256 bytes, so that inputs are short. Ids are tokens; where every byte has one and no token takes white space
// along or is normalized, the text is what its ids decode to; a tokenizer that is saved and loaded gives the same ids.
#include "../../formats/tokenizer_file.h"
#include "fuzz.h"

static std::string fuzz_with_bytes(std::string json) {
    static const std::string bytes = [] {
        std::string s;
        for (int b = 0; b < 256; b++)
            s += (b ? "," : "") + nlohmann::json(byte_chars_encode(std::string(1, (char)b))).dump() + ":" +
                 std::to_string(b);
        return s;
    }();
    const std::string mark = "\"@bytes\":0";
    const size_t at = json.find(mark);
    return at == std::string::npos ? json : json.replace(at, mark.size(), bytes);
}

// whether decoding must give back any text
static bool fuzz_lossless(const Tokenizer& t) {
    for (const int id : t.byte_id)
        if (id < 0) return false;
    for (const AddedToken& a : t.added)
        if (a.lstrip || a.rstrip || a.needle != a.content || t.bytes[(size_t)a.id] != a.content) return false;
    return true;
}

static int fuzz_tokenizer(const uint8_t* data, size_t size) {
    static const FuzzFolder folder, saved;
    FuzzFiles in = fuzz_files(data, size, "tokenizer.json");
    for (const char* name : {"tokenizer.json", "vocab.json"})
        if (in.count(name)) in[name] = fuzz_with_bytes(in[name]);
    folder.put(in, {"tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
                    "generation_config.json", "chat_template.jinja"});
    Tokenizer t, again;
    if (!fuzz_accepts([&] { tokenizer_load(t, folder.path); })) return 0;
    const std::string text = in["text"], valid = utf8_is_valid(text) ? text : utf8_lossy(text);
    const std::string expected = t.use_nfc && nfc_needed(valid) ? nfc(valid) : valid;
    tokenizer_save(t, saved.path);
    tokenizer_load(again, saved.path);
    for (const bool special : {true, false}) {
        std::vector<int> ids, ids_again;
        tokenizer_encode(t, text, ids, special);
        for (const int id : ids) fuzz_require(id >= 0 && id < tokenizer_vocab_size(t) && t.flags[(size_t)id], "an id");
        if (fuzz_lossless(t) && (!t.use_nfc || t.added.empty()))
            fuzz_require(tokenizer_decode(t, ids) == expected, "ids decode to the text");
        tokenizer_encode(again, text, ids_again, special);
        fuzz_require(ids == ids_again, "a saved tokenizer gives the same ids");
    }
    fuzz_require(again.chat_text == t.chat_text && again.bos == t.bos && again.pad == t.pad, "and is the same");
    return 0;
}
FUZZ_TARGET(tokenizer)
