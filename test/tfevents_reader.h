// A reader of event files that shares nothing with formats/tfevents.h: no checksums, no care for damaged bytes; it throws
// (std::out_of_range) or reads nonsense where there are some.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <tuple>
#include <vector>

// the fields of a message by number, in order; numbers as eight or four bytes
typedef std::multimap<int, std::string> EventFields;

inline EventFields event_fields(const std::string& s) {
    EventFields fields;
    size_t at = 0;
    auto number = [&] {
        uint64_t v = 0;
        for (int shift = 0;; shift += 7) {
            const uint8_t byte = (uint8_t)s.at(at++);
            v |= (uint64_t)(byte % 128) << shift;
            if (byte < 128) return v;
        }
    };
    while (at < s.size()) {
        const uint64_t key = number();
        const size_t n = key % 8 == 1 ? 8 : key % 8 == 5 ? 4 : key % 8 == 2 ? number() : 0;
        std::string bytes = s.substr(at, n);
        if (key % 8 == 0) {
            const uint64_t v = number();
            bytes.assign((const char*)&v, 8);
        }
        fields.insert({(int)(key / 8), bytes});
        at += n;
    }
    return fields;
}

// the first field of this number; "": there is none
inline std::string event_field(const EventFields& fields, int number) {
    const auto found = fields.find(number);
    return found == fields.end() ? "" : found->second;
}

struct EventPoint {
    int64_t step = 0;
    std::string tag;
    float value = 0.0f;  // of a scalar
    std::string text;    // of the text plugin
    std::string plugin;
    bool operator==(const EventPoint& b) const {
        return std::tie(step, tag, value, text, plugin) == std::tie(b.step, b.tag, b.value, b.text, b.plugin);
    }
};

inline int64_t event_step(const EventFields& event) {
    int64_t step = 0;
    const std::string bytes = event_field(event, 2);
    memcpy(&step, bytes.data(), bytes.size());
    return step;
}

// the values of an event's summary
inline std::vector<EventPoint> event_points(const std::string& event) {
    std::vector<EventPoint> points;
    const EventFields fields = event_fields(event), summary = event_fields(event_field(fields, 5));
    for (const auto& [number, bytes] : summary) {
        const EventFields value = event_fields(bytes);
        EventPoint p;
        p.step = event_step(fields), p.tag = event_field(value, 1);
        if (value.count(2)) memcpy(&p.value, event_field(value, 2).data(), 4);
        p.plugin = event_field(event_fields(event_field(event_fields(event_field(value, 9)), 1)), 1);
        if (p.plugin == "text") p.text = event_field(event_fields(event_field(value, 8)), 8);
        points.push_back(p);
    }
    return points;
}

// names of the event files in a folder, in the order of TensorBoard
inline std::vector<std::string> event_file_names(const std::string& folder) {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
        const std::string name = entry.path().filename().string();
        if (name.find("tfevents") != std::string::npos) names.push_back(name);
    }
    std::sort(names.begin(), names.end());
    return names;
}

// of all of them
inline std::vector<EventPoint> event_points_in(const std::string& folder) {
    std::vector<EventPoint> points;
    for (const std::string& name : event_file_names(folder)) {
        std::ifstream in(folder + "/" + name, std::ios::binary);
        const std::string file{std::istreambuf_iterator<char>(in), {}};
        for (size_t at = 0; at < file.size();) {
            uint64_t length = 0;
            memcpy(&length, &file.at(at), 8);
            for (const EventPoint& p : event_points(file.substr(at + 12, length))) points.push_back(p);
            at += length + 16;
        }
    }
    return points;
}
