// Completions that have gone wrong as those of models at few bits do (arXiv 2606.02011): they no longer read as text, or
// go round in circles until their tokens are used up (completions/clipped_ratio counts what was cut off).
//   garbled     more than 1 in 20 characters of the text are none: bytes that are not UTF-8, U+FFFD, control characters
//               but for tab and line ends
//   repeating   its last tokens, LOOP_TOKENS at least, are one piece of up to LOOP_PERIOD tokens LOOP_TIMES over; or it
//               has LOOP_TOKENS tokens, and more than half of its 3-grams came before
// Both are exact and bounded: no likelihoods, at most LOOP_PERIOD passes over the tokens.
//
// The trap: a completion that was cut off may end within a character, and one that ended by itself has a stop token
// behind its loop. Neither counts.
#pragma once
#include <string>
#include <vector>
#include "../rewards/repetition.h"
#include "../runtime/unicode.h"

static constexpr int LOOP_TOKENS = 16, LOOP_TIMES = 4, LOOP_PERIOD = 256;

inline bool is_garbled(const std::string& text, bool finished) {
    int64_t characters = 0, bad = 0;
    for (size_t i = 0; i < text.size();) {
        int length = 1;
        const int c = utf8_step(text.data(), i, text.size(), &length);
        i = c == -2 ? text.size() : i + (size_t)length;
        const bool control = (c >= 0 && c < 0x20 && c != '\t' && c != '\n' && c != '\r') || (c >= 0x7F && c < 0xA0);
        if ((c < 0 || c == 0xFFFD) && i == text.size() && !finished) break;
        characters++;
        bad += c < 0 || c == 0xFFFD || control;
    }
    return 20 * bad > characters;
}

inline bool is_repeating(const std::vector<int>& tokens, bool finished) {
    const int n = (int)tokens.size() - (finished && !tokens.empty());
    if (n < LOOP_TOKENS) return false;
    for (int period = 1; period <= LOOP_PERIOD && period * LOOP_TIMES <= n; period++) {
        const int least = std::max(LOOP_TOKENS, period * LOOP_TIMES);
        int run = period;  // tokens at the end that have the period
        while (run < least && tokens[n - 1 - run] == tokens[n - 1 - run + period]) run++;
        if (run == least) return true;
    }
    return repeated_ngram_share({tokens.begin(), tokens.begin() + n}, 3) > 0.5;
}
