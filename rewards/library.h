// A reward that is a shared library of the user's: train_qrl_reward.h has its functions.
//
// Faster than a program by the pipe and the JSON, and without its walls: it runs in this process, no limit on its time or
// memory holds, and where it crashes the run ends. The trap: NaN is what `out` is filled with before the call, so that an
// answer that was forgotten is an error, and not a reward.
#pragma once
#include <dlfcn.h>
#include "../runtime/settings.h"
#include "reward_input.h"
#include "train_qrl_reward.h"

inline const std::vector<SettingRow>& library_settings() {
    static const std::vector<SettingRow> rows = {
        {"on_error", "stop", "stop|zero", "a completion that it fails on ends the run, or is paid 0"},
        {"outcome", "false", "false|true", "above 0.5 is right, which --dynamic_sampling goes by"}};
    return rows;
}

struct LibraryReward : OwnReward {
    void* handle = nullptr;
    decltype(&train_qrl_reward) call = nullptr;
    decltype(&train_qrl_reward_close) close = nullptr;  // may be null

    LibraryReward(const std::string& name_, const Settings& s) {
        name = name_, path = s.name, zero = s.is("on_error", "zero");
    }
    LibraryReward(const LibraryReward&) = delete;
    LibraryReward& operator=(const LibraryReward&) = delete;
    ~LibraryReward() override {
        if (close) close();
        if (handle) dlclose(handle);
    }

    template <class F>
    F function(const char* symbol, bool needed = true) const {
        F f = reinterpret_cast<F>(dlsym(handle, symbol));
        if (!f && needed)
            fail("--reward_funcs %s: the library has no function %s; see rewards/train_qrl_reward.h", path.c_str(),
                 symbol);
        return f;
    }
    void start() override {
        if (call) return;
        if (!handle) handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!handle) {
            const char* why = dlerror();
            fail("--reward_funcs %s: not a library that can be loaded: %s", path.c_str(),
                 printable(why ? why : "no reason given", 300).c_str());
        }
        const int abi = function<decltype(&train_qrl_reward_abi)>("train_qrl_reward_abi")();
        if (abi != TRAIN_QRL_REWARD_ABI)
            fail(
                "--reward_funcs %s: the library has interface %d, this program %d; compile it with the "
                "rewards/train_qrl_reward.h of this version",
                path.c_str(), abi, TRAIN_QRL_REWARD_ABI);
        const auto pay = function<decltype(&train_qrl_reward)>("train_qrl_reward");
        const auto open = function<decltype(&train_qrl_reward_open)>("train_qrl_reward_open", false);
        const int opened = open ? open() : 0;
        if (opened != 0)
            fail("--reward_funcs %s: train_qrl_reward_open returned %d, which says that it failed", path.c_str(),
                 opened);
        close = function<decltype(close)>("train_qrl_reward_close", false);
        call = pay;
    }

    bool compute(const std::vector<RewardItem>& items) override {
        start();
        failed = 0;
        const size_t n = items.size();
        std::vector<std::string> rows(n);
        std::vector<TrainQrlRewardInput> in(n);
        std::vector<double> out(n, std::nan(""));
        auto text = [](const std::string& s) { return TrainQrlText{s.c_str(), s.size()}; };
        for (size_t i = 0; i < n; i++) {
            const RewardInput& x = *items[i].in;
            if (x.row) rows[i] = x.row->dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
            in[i] = {text(x.prompt), text(x.completion),   text(x.gold),           text(rows[i]),
                     x.finished,     (int)x.tokens.size(), x.max_completion_length};
        }
        const int status = n ? call(in.data(), n, out.data()) : 0;
        if (status != 0) {
            give_up(items.data(), n, format("train_qrl_reward returned %d, which says that it failed", status));
            return true;
        }
        for (size_t i = 0; i < n; i++) {
            *items[i].reward = out[i] == TRAIN_QRL_REWARD_NONE ? REWARD_NONE : (float)out[i];
            if (out[i] != TRAIN_QRL_REWARD_NONE && !(std::fabs(out[i]) <= REWARD_MOST))
                give_up(&items[i], 1, format("it paid %g, and a number in [-1e9, 1e9] is expected", out[i]));
        }
        return true;
    }
};
