// Tokenizer throughput on one core: bench_tokenizer TOKENIZER_FOLDER TEXT_FILE. Best of five passes over the file.
#include <chrono>
#include <cstdio>
#include "../runtime/file_io.h"
#include "../formats/tokenizer_file.h"

int main(int argc, char** argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: bench_tokenizer TOKENIZER_FOLDER TEXT_FILE\n");
        return 2;
    }
    Tokenizer tok;
    tokenizer_load(tok, argv[1]);
    std::string text = read_file(argv[2]);
    double best = 1e30;
    std::vector<int> ids;
    for (int pass = 0; pass < 5; pass++) {
        auto start = std::chrono::steady_clock::now();
        tokenizer_encode(tok, text, ids);
        best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    printf("tokenizer: %.1f MB, %zu tokens, %.1f MB/s on one core\n", text.size() / 1e6, ids.size(), text.size() / 1e6 / best);
}
