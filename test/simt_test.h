// What the tests of the simulated runtime share.
#pragma once
#include <gtest/gtest.h>
#include <string>
#include <vector>
#include "../runtime/device.h"

// runs f in each order of threads
template <class F>
void in_all_orders(F f) {
    for (SimtOrder order : {SIMT_FORWARD, SIMT_REVERSE, SIMT_RANDOM}) {
        simt_settings.order = order;
        simt_settings.seed = 7;
        f();
    }
    simt_settings.order = SIMT_FORWARD;
    simt_settings.seed = 0;
}

template <class F>
std::string message_of(F f) {
    try {
        f();
    } catch (const Error& e) { return e.what(); }
    return "no error";
}

// every part must be in the message of the fault, in every order of threads
template <class F>
void expect_fault(F f, const std::vector<std::string>& parts) {
    in_all_orders([&] {
        std::string message = message_of(f);
        for (const std::string& part : parts)
            EXPECT_NE(message.find(part), std::string::npos) << message << "\nlacks: " << part;
    });
}
