// A model from its folder or GGUF file in one call; the commands plan its memory in between.
#pragma once
#include "../formats/checkpoint.h"

inline void model_load(Model& m, const std::string& path) {
    model_allocate(m, model_config(path));
    model_load_weights(m, path);
}
