// Tokenizer: byte-level BPE as Hugging Face `tokenizers` computes it, for the Qwen2/2.5/3, GPT-2, SmolLM2 and Llama-3
// vocabularies, plus an embedded 256-byte vocabulary.
//
// text -> ids:
//   1. added tokens (<|im_end|>, <think>, ...) are cut out of the raw text, leftmost first, the longest on a tie
//   2. the pieces between are brought to Unicode NFC, if the tokenizer says so (Qwen does, SmolLM2 and Llama 3 do not)
//   3. each piece is split into words by the family's regular expression, written out by hand below
//   4. each word is a sequence of bytes, one token each; the neighbouring pair with the lowest merge rank becomes its
//      merged token, leftmost first on a tie, until no pair has a rank (Sennrich et al. 2016; GPT-2's byte version)
// Vocabulary files show bytes as printable characters: GPT-2's byte-to-unicode map (space is U+0120, and so on).
//
// Word cache: a word that is itself a token whose merges lead to it (checked for each token at load) is looked up
// whole. That covers most words of running text and, unlike a cache that fills up, leaves the Tokenizer const and
// thread-safe.
//
// The trap: splits and NFC depend on a Unicode version, here 14 (runtime/unicode.h). Hugging Face's own NFC tables are
// Unicode 9: next to one of the 98 combining marks added since, its ids differ from these (and from ICU's).
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>
#include "runtime/error.h"
#include "runtime/printable.h"
#include "runtime/unicode.h"

// 4x the largest public vocabulary; bounds what a hostile id allocates
static constexpr int kMaxTokenId = (1 << 20) - 1;
// bytes; the longest published tokens are runs of some hundred blanks. Of an added token: bounds the search at each
// byte of a text
static constexpr size_t kMaxTokenBytes = 1 << 16, kMaxAddedTokenBytes = 512;

// ---- splitting into words -----------------------------------------------------------------------------------

enum class PreTokenizer { gpt2, qwen2, llama3, smollm };

static constexpr const char* kGpt2Regex =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
static constexpr const char* kQwen2Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
static constexpr const char* kLlama3Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// length of 's 't 're 've 'm 'll 'd at s[i] == '\'', or 0
inline size_t contraction_length(const char* s, size_t i, size_t n, bool ignore_case) {
    auto at = [&](size_t k) {
        char c = i + k < n ? s[i + k] : '\0';
        return ignore_case && c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
    };
    char a = at(1), b = at(2);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
    if (ignore_case && a == '\xC5' && b == '\xBF') return 3;  // U+017F folds to s, as in the Oniguruma that HF uses
    return 0;
}

// end of the run of characters from i on whose class has (want) or lacks (!want) all bits of mask
inline size_t class_run(const uint8_t* classes, const char* s, size_t i, size_t n, uint8_t mask, bool want) {
    int len;
    while (i < n && ((utf8_class(classes, s, i, n, &len) & mask) != 0) == want) i += (size_t)len;
    return i;
}

// \s+(?!\S)|\s+ at white space s[i], with \s*[\r\n]+ before them if `newlines`
inline size_t space_end(const uint8_t* classes, const char* s, size_t i, size_t n, bool newlines) {
    size_t end = i, last = i, after_newline = 0;
    for (int len; end < n && (utf8_class(classes, s, end, n, &len) & kSpace); end += (size_t)len) {
        last = end;
        if (s[end] == '\n' || s[end] == '\r') after_newline = end + 1;
    }
    if (newlines && after_newline) return after_newline;
    return end == n || last == i ? end : last;  // the last blank is left for the word that follows
}

inline size_t word_end_gpt2(const uint8_t* classes, const char* s, size_t i, size_t n) {
    if (s[i] == '\'') {
        if (size_t k = contraction_length(s, i, n, false)) return i + k;
    }
    size_t p = i + (s[i] == ' ');
    int len;
    uint8_t c = p < n ? utf8_class(classes, s, p, n, &len) : (uint8_t)kSpace;
    if (c & kSpace) return space_end(classes, s, i, n, false);
    if (c & kLetter) return class_run(classes, s, p, n, kLetter, true);
    if (c & kNumber) return class_run(classes, s, p, n, kNumber, true);
    return class_run(classes, s, p, n, kLetter | kNumber | kSpace, false);
}

inline size_t word_end_qwen2(const uint8_t* classes, const char* s, size_t i, size_t n, int max_digits) {
    if (s[i] == '\'') {
        if (size_t k = contraction_length(s, i, n, true)) return i + k;
    }
    int len, next;
    uint8_t c = utf8_class(classes, s, i, n, &len);
    if (c & kLetter) return class_run(classes, s, i, n, kLetter, true);
    if (c & kNumber) {
        size_t end = i;
        for (int k = 0; k < max_digits && end < n && (utf8_class(classes, s, end, n, &len) & kNumber); k++)
            end += (size_t)len;
        return end;
    }
    size_t p = i + (size_t)len;
    if (s[i] != '\n' && s[i] != '\r' && p < n && (utf8_class(classes, s, p, n, &next) & kLetter))
        return class_run(classes, s, p, n, kLetter, true);
    p = i + (s[i] == ' ');
    if (p < n && !(utf8_class(classes, s, p, n, &next) & (kLetter | kNumber | kSpace))) {
        size_t end = class_run(classes, s, p, n, kLetter | kNumber | kSpace, false);
        while (end < n && (s[end] == '\n' || s[end] == '\r')) end++;
        return end;
    }
    return space_end(classes, s, i, n, true);
}

// ends: the offset one past each word of s (valid UTF-8), so that ends.back() == s.size()
inline void pretokenize(PreTokenizer kind, std::string_view text, std::vector<size_t>& ends) {
    const uint8_t* classes = unicode_classes();
    const char* s = text.data();
    ends.clear();
    for (size_t i = 0, n = text.size(), stop = 0; i < n; ends.push_back(i)) {
        if (kind == PreTokenizer::qwen2) {
            i = word_end_qwen2(classes, s, i, n, 1);
        } else if (kind == PreTokenizer::llama3) {
            i = word_end_qwen2(classes, s, i, n, 3);
        } else if (kind == PreTokenizer::gpt2) {
            i = word_end_gpt2(classes, s, i, n);
        } else {  // smollm: numbers are cut out one by one first; GPT-2's expression sees only what is between them
            int len;
            if (i >= stop) stop = class_run(classes, s, i, n, kNumber, false);
            if (i < stop) {
                i = word_end_gpt2(classes, s, i, stop);
            } else {
                utf8_class(classes, s, i, n, &len);
                i += (size_t)len;
            }
        }
    }
}

// ---- bytes as printable characters --------------------------------------------------------------------------

// GPT-2's map: the 188 printable Latin-1 bytes stand for themselves, the other 68, in order, are U+0100 ..
struct ByteChars {
    int char_of[256];       // code point that shows a byte
    int byte_of[256 + 68];  // and back; -1: shows none
};

inline const ByteChars& byte_chars() {
    static const ByteChars map = [] {
        ByteChars m;
        std::fill(std::begin(m.byte_of), std::end(m.byte_of), -1);
        int next = 256;
        for (int b = 0; b < 256; b++) {
            bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
            m.char_of[b] = printable ? b : next++;
            m.byte_of[m.char_of[b]] = b;
        }
        return m;
    }();
    return map;
}

inline std::string byte_chars_encode(std::string_view bytes) {
    std::string out;
    for (char b : bytes) utf8_append(out, byte_chars().char_of[(unsigned char)b]);
    return out;
}

// false if a character of text (valid UTF-8) shows no byte; then bytes is the text itself, as HF's decoder has it
inline bool byte_chars_decode(const std::string& text, std::string& bytes) {
    bytes.clear();
    for (size_t i = 0; i < text.size();) {
        int len, c = utf8_step(text.data(), i, text.size(), &len);
        int b = c >= 0 && c < 256 + 68 ? byte_chars().byte_of[c] : -1;
        if (b < 0) {
            bytes = text;
            return false;
        }
        bytes += (char)b;
        i += (size_t)len;
    }
    return true;
}

// ---- the tokenizer ------------------------------------------------------------------------------------------

struct AddedToken {
    std::string content;
    int id = -1;
    bool special = false;      // dropped by decode(skip_special)
    bool lstrip = false;       // takes the white space before it along
    bool rstrip = false;       // and after it
    bool single_word = false;  // not inside a word
    bool normalized = false;   // looked for after normalization
    std::string needle;        // what is looked for: content, normalized if that is set
};

struct Merge {
    uint64_t pair = ~0ull;  // left id << 32 | right id; ~0: empty slot
    uint32_t rank = 0;
    int id = -1;  // of the merged token
};

// Added tokens in the order of their needles; those that begin with byte b are order[begin[b]] up to order[begin[b + 1]]
struct AddedTable {
    std::vector<int> order;  // indices into Tokenizer::added
    int begin[257] = {};
};

enum : uint8_t { kTokenVocab = 1, kTokenAdded = 2, kTokenSpecial = 4 };

struct Tokenizer {
    // V = number of ids; an id may be unused (flags 0, empty strings)
    std::vector<std::string> text;               // [V] as vocab.json spells it; added tokens: the plain content
    std::vector<std::string> bytes;              // [V] what it decodes to
    std::vector<uint8_t> flags;                  // [V] kTokenVocab: reachable by BPE, kTokenAdded, kTokenSpecial
    std::unordered_map<std::string, int> id_of;  // text -> id
    std::vector<std::string> merges;             // "left right", by rank, in vocab.json's spelling
    std::vector<AddedToken> added;

    PreTokenizer pre = PreTokenizer::qwen2;
    bool use_nfc = false;
    bool ignore_merges = false;  // Llama 3: a word that is a token is never merged
    bool add_bos = false;
    int bos = -1, pad = -1, unk = -1;
    std::vector<int> eos;  // the tokenizer's own first, then generation_config.json's
    int64_t model_max_length = 0;
    std::string chat_text;  // a text that its files carry and data/chat_template.h reads; "" if there is none

    // derived by tokenizer_finish
    int byte_id[256];                 // token of a single byte; -1: none
    std::vector<Merge> merge_slots;   // open addressing, a power of two, at most half full
    std::vector<int> word_slots;      // id + 1 by hash of bytes[id]: the words of the word cache
    AddedTable added_raw, added_nfc;  // what is looked for before and after normalization
};

inline int tokenizer_vocab_size(const Tokenizer& t) { return (int)t.text.size(); }
inline bool tokenizer_is_special(const Tokenizer& t, int id) {
    return id >= 0 && id < tokenizer_vocab_size(t) && (t.flags[(size_t)id] & kTokenSpecial);
}
inline bool tokenizer_is_eos(const Tokenizer& t, int id) {
    return std::find(t.eos.begin(), t.eos.end(), id) != t.eos.end();
}
// id of a token in vocab.json's spelling (or of an added token), -1 if there is none
inline int tokenizer_id(const Tokenizer& t, const std::string& token) {
    auto it = t.id_of.find(token);
    return it == t.id_of.end() ? -1 : it->second;
}

inline uint64_t hash_word(std::string_view s) {
    uint64_t h = s.size() * 0x9E3779B97F4A7C15ull, w;
    size_t i = 0;
    for (; i + 8 <= s.size(); i += 8) {
        memcpy(&w, s.data() + i, 8);
        h = (h ^ w) * 0xD6E8FEB86659FD93ull;
        h ^= h >> 32;
    }
    w = 0;
    if (i < s.size()) memcpy(&w, s.data() + i, s.size() - i);
    h = (h ^ w) * 0xD6E8FEB86659FD93ull;
    return h ^ (h >> 32);
}

inline int word_find(const Tokenizer& t, std::string_view word) {
    size_t mask = t.word_slots.size() - 1;
    for (size_t k = hash_word(word) & mask; t.word_slots[k]; k = (k + 1) & mask) {
        int id = t.word_slots[k] - 1;
        if (t.bytes[(size_t)id] == word) return id;
    }
    return -1;
}

inline size_t merge_slot(const Tokenizer& t, uint64_t pair) {  // where pair is, or the empty slot where it would be
    size_t mask = t.merge_slots.size() - 1;
    uint64_t h = pair * 0x9E3779B97F4A7C15ull;
    size_t k = (h ^ (h >> 32)) & mask;
    while (t.merge_slots[k].pair != pair && t.merge_slots[k].pair != ~0ull) k = (k + 1) & mask;
    return k;
}
inline const Merge* merge_find(const Tokenizer& t, int left, int right) {
    const Merge& m = t.merge_slots[merge_slot(t, (uint64_t)(uint32_t)left << 32 | (uint32_t)right)];
    return m.pair == ~0ull ? nullptr : &m;
}

// ---- encoding -----------------------------------------------------------------------------------------------

// symbols[n] of a short word -> merged in place, new length returned. O(n^2) moves, but of a few bytes
inline int bpe_short(const Tokenizer& t, int* symbols, int n) {
    static constexpr uint32_t kNone = ~0u;
    uint32_t rank[64];  // rank[k], merged[k]: of the pair (symbols[k], symbols[k + 1])
    int merged[64];
    auto look_up = [&](int k) {
        const Merge* m = merge_find(t, symbols[k], symbols[k + 1]);
        rank[k] = m ? m->rank : kNone;
        merged[k] = m ? m->id : -1;
    };
    for (int k = 0; k + 1 < n; k++) look_up(k);
    while (n > 1) {
        int best = 0;
        for (int k = 1; k + 1 < n; k++) {
            if (rank[k] < rank[best]) best = k;
        }
        if (rank[best] == kNone) break;
        symbols[best] = merged[best];
        n--;
        for (int k = best + 1; k < n; k++) symbols[k] = symbols[k + 1];
        for (int k = best + 1; k + 1 < n; k++) rank[k] = rank[k + 1], merged[k] = merged[k + 1];
        if (best > 0) look_up(best - 1);
        if (best + 1 < n) look_up(best);
    }
    return n;
}

// The same for a word of any length: a linked list and a heap of (rank, position); O(n log n). An entry whose pair has
// changed since it was pushed no longer has its rank and is skipped.
inline void bpe_long(const Tokenizer& t, std::vector<int>& symbols) {
    if (symbols.size() >= (1ull << 31)) fail("tokenizer: a word of more than 2^31 bytes");
    int n = (int)symbols.size();
    std::vector<int> prev((size_t)n), next((size_t)n);
    std::vector<uint64_t> heap;
    auto push = [&](int k, bool sift) {
        if (k < 0 || next[(size_t)k] >= n) return;
        const Merge* m = merge_find(t, symbols[(size_t)k], symbols[(size_t)next[(size_t)k]]);
        if (!m) return;
        heap.push_back((uint64_t)m->rank << 32 | (uint32_t)k);
        if (sift) std::push_heap(heap.begin(), heap.end(), std::greater<uint64_t>());
    };
    for (int k = 0; k < n; k++) prev[(size_t)k] = k - 1, next[(size_t)k] = k + 1;
    for (int k = 0; k < n; k++) push(k, false);
    std::make_heap(heap.begin(), heap.end(), std::greater<uint64_t>());
    while (!heap.empty()) {
        uint32_t rank = (uint32_t)(heap.front() >> 32);
        size_t k = (uint32_t)heap.front();
        std::pop_heap(heap.begin(), heap.end(), std::greater<uint64_t>());
        heap.pop_back();
        int right = next[k];
        if (symbols[k] < 0 || right >= n) continue;  // -1: swallowed by its left neighbour
        const Merge* m = merge_find(t, symbols[k], symbols[(size_t)right]);
        if (!m || m->rank != rank) continue;
        symbols[k] = m->id;
        symbols[(size_t)right] = -1;
        next[k] = next[(size_t)right];
        if (next[k] < n) prev[(size_t)next[k]] = (int)k;
        push(prev[k], true);
        push((int)k, true);
    }
    symbols.erase(std::remove(symbols.begin(), symbols.end(), -1), symbols.end());
}

// one word by merges alone, appended to ids. As in HF, a byte without a token becomes unk, or nothing if there is none
inline void bpe_merge(const Tokenizer& t, std::string_view word, std::vector<int>& ids) {
    if (word.size() <= 64) {
        int symbols[64], n = 0;
        for (char b : word) {
            int id = t.byte_id[(unsigned char)b] >= 0 ? t.byte_id[(unsigned char)b] : t.unk;
            if (id >= 0) symbols[n++] = id;
        }
        n = bpe_short(t, symbols, n);
        ids.insert(ids.end(), symbols, symbols + n);
        return;
    }
    std::vector<int> symbols;
    symbols.reserve(word.size());
    for (char b : word) {
        int id = t.byte_id[(unsigned char)b] >= 0 ? t.byte_id[(unsigned char)b] : t.unk;
        if (id >= 0) symbols.push_back(id);
    }
    bpe_long(t, symbols);
    ids.insert(ids.end(), symbols.begin(), symbols.end());
}

struct TokenizerPiece {
    size_t begin, end;
    int id;  // an added token, or -1: text
};

// the longest added token that stands at s[i], the first listed of those that are equal; nullptr: none
inline const AddedToken* added_token_at(const Tokenizer& t, const AddedTable& table, std::string_view s, size_t i) {
    auto needle = [&](int k) -> const std::string& { return t.added[(size_t)k].needle; };
    auto low = table.order.begin() + table.begin[(unsigned char)s[i]];
    auto high = table.order.begin() + table.begin[(unsigned char)s[i] + 1];
    const AddedToken* found = nullptr;
    for (size_t n = 1; low < high; n++) {  // those of [low, high) begin with the n bytes at s[i]
        if (needle(*low).size() == n) found = &t.added[(size_t)*low];
        while (low < high && needle(*low).size() == n) ++low;
        if (i + n == s.size()) break;
        const unsigned char c = (unsigned char)s[i + n];
        low = std::partition_point(low, high, [&](int k) { return (unsigned char)needle(k)[n] < c; });
        high = std::partition_point(low, high, [&](int k) { return (unsigned char)needle(k)[n] == c; });
    }
    return found;
}

// cuts the added tokens of one table out of s; parse_special = false passes over the special ones
inline void cut_added_tokens(const Tokenizer& t, const AddedTable& table, std::string_view s, bool parse_special,
                             std::vector<TokenizerPiece>& pieces) {
    const uint8_t* classes = unicode_classes();
    auto class_before = [&](size_t i) {  // of the character that ends at i
        size_t k = i - 1;
        while (k > 0 && ((unsigned char)s[k] & 0xC0) == 0x80) k--;
        int len;
        return utf8_class(classes, s.data(), k, s.size(), &len);
    };
    pieces.clear();
    size_t start = 0;
    for (size_t i = 0; i < s.size();) {
        const AddedToken* found = added_token_at(t, table, s, i);
        if (!found) {
            i++;
            continue;
        }
        size_t begin = i, end = i + found->needle.size();
        i = end;
        if (found->special && !parse_special) continue;
        int len;
        if (found->single_word && ((begin > 0 && (class_before(begin) & kWord)) ||
                                   (end < s.size() && (utf8_class(classes, s.data(), end, s.size(), &len) & kWord))))
            continue;
        if (found->lstrip) {
            while (begin > start && (class_before(begin) & kSpace)) {
                do begin--;
                while (((unsigned char)s[begin] & 0xC0) == 0x80);
            }
            begin = std::max(begin, start);
        }
        if (found->rstrip) end = class_run(classes, s.data(), end, s.size(), kSpace, true);
        if (begin >= end) continue;  // blanks that an rstrip has taken
        if (start < begin) pieces.push_back({start, begin, -1});
        pieces.push_back({begin, end, found->id});
        start = end;
    }
    if (start < s.size()) pieces.push_back({start, s.size(), -1});
}

// text -> ids (replaced, not appended to). Invalid UTF-8 is read as U+FFFD. parse_special = false: the text of special
// tokens is plain text (use it for what a user or a model wrote; added tokens that are not special are still
// recognised). with_bos: in front the BOS that this tokenizer wants (Llama 3), unless the text begins with it. Rendered
// chats contain theirs already.
inline void tokenizer_encode(const Tokenizer& t, std::string_view text, std::vector<int>& ids,
                             bool parse_special = true, bool with_bos = false) {
    ids.clear();
    std::string repaired, normal;
    if (!utf8_is_valid(text)) {
        repaired = utf8_lossy(text);
        text = repaired;
    }
    std::vector<TokenizerPiece> pieces, inner;
    std::vector<size_t> ends;
    cut_added_tokens(t, t.added_raw, text, parse_special, pieces);
    for (const TokenizerPiece& piece : pieces) {
        if (piece.id >= 0) {
            ids.push_back(piece.id);
            continue;
        }
        std::string_view plain = text.substr(piece.begin, piece.end - piece.begin);
        if (t.use_nfc && nfc_needed(plain)) {
            normal = nfc(plain);
            plain = normal;
        }
        cut_added_tokens(t, t.added_nfc, plain, parse_special, inner);
        for (const TokenizerPiece& part : inner) {
            if (part.id >= 0) {
                ids.push_back(part.id);
                continue;
            }
            std::string_view words = plain.substr(part.begin, part.end - part.begin);
            pretokenize(t.pre, words, ends);
            size_t begin = 0;
            for (size_t end : ends) {
                std::string_view word = words.substr(begin, end - begin);
                int id = word_find(t, word);
                if (id >= 0) {
                    ids.push_back(id);
                } else {
                    bpe_merge(t, word, ids);
                }
                begin = end;
            }
        }
    }
    if (with_bos && t.add_bos && (ids.empty() || ids[0] != t.bos)) ids.insert(ids.begin(), t.bos);
}

// ---- decoding -----------------------------------------------------------------------------------------------

// the bytes of one token, possibly part of a character; "" for an id that is no token (the padded rows of an embedding)
inline std::string_view tokenizer_token_bytes(const Tokenizer& t, int id, bool skip_special = false) {
    if (id < 0 || id >= tokenizer_vocab_size(t) || (skip_special && tokenizer_is_special(t, id))) return {};
    return t.bytes[(size_t)id];
}

inline std::string tokenizer_decode(const Tokenizer& t, const std::vector<int>& ids, bool skip_special = false) {
    std::string bytes;
    for (int id : ids) bytes.append(tokenizer_token_bytes(t, id, skip_special));
    return utf8_is_valid(bytes) ? bytes : utf8_lossy(bytes);
}

// ---- building -----------------------------------------------------------------------------------------------

// one token of the vocabulary; where: the file, for the message
inline void tokenizer_put(Tokenizer& t, const std::string& where, const std::string& text, int64_t id, uint8_t flags) {
    const char* file = where.c_str();
    if (id < 0 || id > kMaxTokenId)
        fail("%s: token %s has id %lld, outside 0..%d", file, shown(text).c_str(), (long long)id, kMaxTokenId);
    if (text.empty()) fail("%s: the token with id %lld is empty", file, (long long)id);
    if (text.size() > kMaxTokenBytes)
        fail("%s: token %s has %zu bytes, more than %zu", file, shown(text).c_str(), text.size(), kMaxTokenBytes);
    if (!utf8_is_valid(text)) fail("%s: the token with id %lld is not valid UTF-8", file, (long long)id);
    if ((size_t)id >= t.text.size()) {
        t.text.resize((size_t)id + 1);
        t.flags.resize((size_t)id + 1, 0);
    }
    std::string& slot = t.text[(size_t)id];
    if (!slot.empty() && slot != text)
        fail("%s: tokens %s and %s both have id %lld", file, shown(slot).c_str(), shown(text).c_str(), (long long)id);
    auto [it, fresh] = t.id_of.emplace(text, (int)id);
    if (!fresh && it->second != id)
        fail("%s: token %s has two ids, %d and %lld", file, shown(text).c_str(), it->second, (long long)id);
    slot = text;
    t.flags[(size_t)id] |= flags;
}

inline void tokenizer_put_added(Tokenizer& t, const std::string& where, const AddedToken& token) {
    // listed twice (tokenizer.json, tokenizer_config.json): the first one's properties count
    bool known = token.id >= 0 && (size_t)token.id < t.flags.size() && (t.flags[(size_t)token.id] & kTokenAdded);
    if (token.content.size() > kMaxAddedTokenBytes)
        fail("%s: added token %s has %zu bytes, more than %zu", where.c_str(), shown(token.content).c_str(),
             token.content.size(), kMaxAddedTokenBytes);
    int flags = known ? 0 : token.special ? kTokenAdded | kTokenSpecial : kTokenAdded;
    tokenizer_put(t, where, token.content, token.id, (uint8_t)flags);
    if (!known) t.added.push_back(token);
}

// bos, eos, pad: special wherever they come from; the next free id if the vocabulary lacks them, as in transformers
inline int tokenizer_put_special(Tokenizer& t, const std::string& where, const std::string& content) {
    int id = tokenizer_id(t, content);
    AddedToken token;
    token.content = content;
    token.id = id >= 0 ? id : tokenizer_vocab_size(t);
    token.special = true;
    tokenizer_put_added(t, where, token);
    for (AddedToken& a : t.added) {
        if (a.id == token.id) a.special = true;
    }
    t.flags[(size_t)token.id] |= kTokenSpecial;
    return token.id;
}

// what each token decodes to, and the tokens of single bytes. Returns which tokens BPE can reach.
inline std::vector<char> tokenizer_index_bytes(Tokenizer& t, const char* file) {
    const size_t V = t.text.size();
    t.bytes.assign(V, "");
    std::fill(std::begin(t.byte_id), std::end(t.byte_id), -1);
    std::vector<char> shows_bytes(V, 0);
    int byte_tokens = 0;
    for (size_t id = 0; id < V; id++) {
        shows_bytes[id] = byte_chars_decode(t.text[id], t.bytes[id]) && (t.flags[id] & kTokenVocab);
        if (!shows_bytes[id] || t.bytes[id].size() != 1) continue;
        t.byte_id[(unsigned char)t.bytes[id][0]] = (int)id;
        byte_tokens++;
    }
    if (byte_tokens < 128)
        fail("%s: only %d of the 256 bytes have a token; this is not a byte-level BPE vocabulary", file, byte_tokens);
    return shows_bytes;
}

inline void tokenizer_index_merges(Tokenizer& t, const char* file) {
    size_t size = 16;
    while (size < 2 * t.merges.size() + 2) size *= 2;
    t.merge_slots.assign(size, Merge());
    for (size_t rank = 0; rank < t.merges.size(); rank++) {
        const std::string& line = t.merges[rank];
        size_t space = line.find(' ');
        if (space == std::string::npos || space == 0 || space + 1 == line.size() ||
            line.find(' ', space + 1) != std::string::npos)
            fail("%s: merge %zu is %s, not two tokens", file, rank, shown(line).c_str());
        std::string left = line.substr(0, space), right = line.substr(space + 1);
        for (const std::string& token : {left, right, left + right}) {
            if (tokenizer_id(t, token) < 0) {
                fail("%s: merge %zu (%s) needs token %s, which the vocabulary lacks", file, rank, shown(line).c_str(),
                     shown(token).c_str());
            }
        }
        uint64_t pair = (uint64_t)(uint32_t)tokenizer_id(t, left) << 32 | (uint32_t)tokenizer_id(t, right);
        Merge& m = t.merge_slots[merge_slot(t, pair)];
        m.pair = pair;
        m.rank = (uint32_t)rank;  // of a merge listed twice the last one counts, as in HF
        m.id = tokenizer_id(t, left + right);
    }
}

// the word cache: tokens whose merges lead to them
inline void tokenizer_index_words(Tokenizer& t, const std::vector<char>& shows_bytes) {
    size_t size = 16;
    while (size < 2 * t.text.size() + 2) size *= 2;
    t.word_slots.assign(size, 0);
    std::vector<int> ids;
    for (size_t id = 0; id < t.text.size(); id++) {
        if (!shows_bytes[id]) continue;
        ids.clear();
        if (!t.ignore_merges) bpe_merge(t, t.bytes[id], ids);
        if (!t.ignore_merges && (ids.size() != 1 || ids[0] != (int)id)) continue;
        size_t k = hash_word(t.bytes[id]) & (size - 1);
        while (t.word_slots[k]) k = (k + 1) & (size - 1);
        t.word_slots[k] = (int)id + 1;
    }
}

inline void tokenizer_index_added(Tokenizer& t) {
    t.added_raw = t.added_nfc = AddedTable();
    for (size_t k = 0; k < t.added.size(); k++) {
        AddedToken& a = t.added[k];
        a.needle = a.normalized && t.use_nfc ? nfc(a.content) : a.content;
        AddedTable& table = a.normalized ? t.added_nfc : t.added_raw;
        table.order.push_back((int)k);
        table.begin[(unsigned char)a.needle[0] + 1]++;
    }
    for (AddedTable* table : {&t.added_raw, &t.added_nfc}) {
        for (int b = 0; b < 256; b++) table->begin[b + 1] += table->begin[b];
        std::stable_sort(table->order.begin(), table->order.end(), [&](int x, int y) {  // as unsigned bytes
            return t.added[(size_t)x].needle < t.added[(size_t)y].needle;
        });
    }
}

// checks the vocabulary and merges and builds every derived table
inline void tokenizer_finish(Tokenizer& t, const std::string& where) {
    const char* file = where.c_str();
    std::vector<char> shows_bytes = tokenizer_index_bytes(t, file);
    tokenizer_index_merges(t, file);
    tokenizer_index_words(t, shows_bytes);
    tokenizer_index_added(t);
    auto check = [&](int id, const char* what) {
        if (id < -1 || id >= tokenizer_vocab_size(t) || (id >= 0 && !t.flags[(size_t)id]))
            fail("%s: the %s token has id %d, which is not in the vocabulary", file, what, id);
    };
    check(t.bos, "bos");
    check(t.pad, "pad");
    for (int id : t.eos) check(id, "eos");
    if (t.add_bos && t.bos < 0) fail("%s: add_bos is set, but there is no bos token", file);
}

// From plain arrays, as a GGUF file has them. tokens[V]: vocab.json's spelling; merges: "left right"; token_type[V]: 1
// normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte (empty: all normal); pre: tokenizer.ggml.pre; ids: -1
// for none. "default" and "" mean GPT-2's split. Unknown pre: one line that names it.
inline Tokenizer tokenizer_from_parts(const std::vector<std::string>& tokens, const std::vector<std::string>& merges,
                                      const std::vector<int>& token_type, const std::string& pre, int eos, int bos,
                                      int pad, bool add_bos, const std::string& chat_template) {
    static const struct {
        const char* name;
        PreTokenizer pre;
        bool use_nfc, ignore_merges;
    } known[] = {
        {"qwen2", PreTokenizer::qwen2, true, false},
        {"deepseek-r1-qwen", PreTokenizer::qwen2, false, false},
        {"llama-bpe", PreTokenizer::llama3, false, true},
        {"llama3", PreTokenizer::llama3, false, true},
        {"llama-v3", PreTokenizer::llama3, false, true},
        {"smollm", PreTokenizer::smollm, false, false},
        {"starcoder", PreTokenizer::smollm, false, false},
        {"gpt-2", PreTokenizer::gpt2, false, false},
        {"gpt2", PreTokenizer::gpt2, false, false},
        {"default", PreTokenizer::gpt2, false, false},
        {"", PreTokenizer::gpt2, false, false},
    };
    const char* where = "tokenizer arrays";
    Tokenizer t;
    auto k = std::find_if(std::begin(known), std::end(known), [&](const auto& row) { return pre == row.name; });
    if (k == std::end(known))
        fail("%s: unknown pre-tokenizer %s; known are qwen2, llama-bpe, smollm, gpt-2", where, shown(pre).c_str());
    if (!token_type.empty() && token_type.size() != tokens.size())
        fail("%s: %zu tokens but %zu token types", where, tokens.size(), token_type.size());
    t.pre = k->pre;
    t.use_nfc = k->use_nfc;
    t.ignore_merges = k->ignore_merges;
    int last_normal = -1;  // added tokens after it are not in the BPE vocabulary (Qwen); before it they are (SmolLM2)
    auto type = [&](size_t id) { return token_type.empty() ? 1 : token_type[id]; };
    for (size_t id = 0; id < tokens.size(); id++) {
        if (type(id) == 1 || type(id) == 6) last_normal = (int)id;
    }
    for (size_t id = 0; id < tokens.size(); id++) {
        if (type(id) == 5 && (int)id > last_normal) continue;  // "[PAD151670]": rows of the embedding, not tokens
        uint8_t flags = (uint8_t)((int)id <= last_normal ? kTokenVocab : 0);
        if (flags) tokenizer_put(t, where, tokens[id], (int64_t)id, flags);
        if (type(id) < 2 || type(id) > 4) continue;
        AddedToken token;
        token.content = tokens[id];
        token.id = (int)id;
        token.special = type(id) != 4;
        tokenizer_put_added(t, where, token);
    }
    t.merges = merges;
    if (eos >= 0) t.eos.push_back(eos);
    t.bos = bos;
    t.pad = pad;
    t.add_bos = add_bos;
    t.chat_text = chat_template;
    tokenizer_finish(t, where);
    return t;
}

// The embedded vocabulary: ids 0..255 are the bytes, no merges; <|endoftext|> 256 is pad, <|im_end|> 258 is eos,
// <|im_start|> is 257
inline Tokenizer tokenizer_byte_level() {
    std::vector<std::string> tokens;
    for (int b = 0; b < 256; b++) tokens.push_back(byte_chars_encode(std::string(1, (char)b)));
    for (const char* special : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}) tokens.push_back(special);
    std::vector<int> type(256, 1);
    type.insert(type.end(), 3, 3);
    return tokenizer_from_parts(tokens, {}, type, "gpt-2", 258, -1, 256, false, "");
}
