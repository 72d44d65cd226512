// TensorBoard event files: what a run has logged, as `tensorboard --logdir` reads it, which takes every file below a folder
// whose name has "tfevents" in it, those of one folder as one run, by name.
//
// A file is a row of TFRecords (tensorflow/core/lib/io/record_writer.h), all numbers little-endian:
//     uint64 length | uint32 masked(crc(those 8 bytes)) | bytes [length] | uint32 masked(crc(bytes))
//     masked(c) = rotate_right(c, 15) + 0xa282ead8
// crc is CRC-32C (Castagnoli; RFC 3720, appendix B.4). The bytes are a protobuf message Event; the first one has
// file_version "brain.Event:2". The messages, of tensorboard/compat/proto/*.proto, with their field numbers:
//     Event          1 wall_time double, 2 step int64, 3 file_version, 5 summary, 7 session_log
//     Summary        1 value: 1 tag, 2 simple_value float, 8 tensor, 9 metadata
//     SessionLog     1 status (1 START, 3 CHECKPOINT), 2 checkpoint_path
//     SummaryMetadata  1 plugin_data: 1 plugin_name, 2 content; 4 data_class (2 TENSOR)
//     TensorProto    1 dtype (1 float, 7 string), 2 tensor_shape, 8 string_val
//     HParamsPluginData (plugins/hparams/plugin_data.proto)  3 session_start_info: 1 hparams (a map: 1 key, 2 value),
//                    5 start_time_secs; 4 session_end_info: 1 status, 2 end_time_secs
// A field is varint(number << 3 | type): 0 varint, 1 eight bytes, 2 varint of the length and bytes, 5 four bytes; one
// that is 0 or empty is left out.
//
// A run that goes on from a checkpoint. What the old files have behind it is cut off: behind the CHECKPOINT that was
// logged when it was saved, so that an evaluation of the same step that came later goes, too, or else behind its step.
// What follows goes into a new file that begins with START. The trap: to go on in the old file would do for those who
// read it later, but a TensorBoard that is running has read beyond the cut; it would take the bytes that come to be there
// for the rest of a record, and give up the file. START has it drop from memory what is cut from the files.
// A record is one write(), so that it can be seen at once, and a killed run leaves whole ones.
#pragma once
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>
#include "../runtime/run_dir.h"
#include "../runtime/unicode.h"

// ---------------------------------------------------------------------------------------------------------------------
// records

// CRC-32C of n bytes: polynomial 0x1EDC6F41, reflected; 0 of none
inline uint32_t crc32c(const void* bytes, size_t n) {
    static const std::vector<uint32_t> table = [] {
        std::vector<uint32_t> t(256);
        for (uint32_t i = 0; i < 256; i++) {
            t[i] = i;
            for (int bit = 0; bit < 8; bit++) t[i] = t[i] >> 1 ^ (t[i] & 1 ? 0x82F63B78u : 0u);
        }
        return t;
    }();
    uint32_t crc = ~0u;
    for (size_t i = 0; i < n; i++) crc = crc >> 8 ^ table[(crc ^ ((const uint8_t*)bytes)[i]) & 255];
    return ~crc;
}

inline uint32_t masked_crc32c(const void* bytes, size_t n) {
    const uint32_t crc = crc32c(bytes, n);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

// the n low bytes of v
inline void put_little_endian(std::string& out, uint64_t v, int n) {
    for (int i = 0; i < n; i++) out += (char)(v >> 8 * i & 255);
}

inline std::string tfrecord(const std::string& bytes) {
    std::string record;
    put_little_endian(record, bytes.size(), 8);
    put_little_endian(record, masked_crc32c(record.data(), 8), 4);
    record += bytes;
    put_little_endian(record, masked_crc32c(bytes.data(), bytes.size()), 4);
    return record;
}

// ---------------------------------------------------------------------------------------------------------------------
// messages

inline void pb_varint(std::string& out, uint64_t v) {
    for (; v >= 128; v >>= 7) out += (char)((v & 127) | 128);
    out += (char)v;
}

inline void pb_number(std::string& out, int field, int64_t v) {
    if (v == 0) return;
    pb_varint(out, (uint64_t)field << 3);
    pb_varint(out, (uint64_t)v);  // a negative one takes ten bytes
}

// also where it is 0: in a oneof that says which it is
inline void pb_double(std::string& out, int field, double v) {
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    pb_varint(out, (uint64_t)field << 3 | 1);
    put_little_endian(out, bits, 8);
}

inline void pb_float(std::string& out, int field, float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    pb_varint(out, (uint64_t)field << 3 | 5);
    put_little_endian(out, bits, 4);
}

// a message, also an empty one, or bytes
inline void pb_bytes(std::string& out, int field, const std::string& bytes) {
    pb_varint(out, (uint64_t)field << 3 | 2);
    pb_varint(out, bytes.size());
    out += bytes;
}

// Readers refuse a message whose strings are not UTF-8
inline void pb_text(std::string& out, int field, const std::string& text) { pb_bytes(out, field, utf8_lossy(text)); }

enum class SessionStatus { none = 0, start = 1, checkpoint = 3 };

// wall: seconds since 1970; what: field and message
inline std::string event_message(double wall, int64_t step, int field, const std::string& what) {
    std::string event;
    pb_double(event, 1, wall);
    pb_number(event, 2, step);
    pb_bytes(event, field, what);
    return event;
}

inline std::string event_version(double wall) { return event_message(wall, 0, 3, "brain.Event:2"); }

inline std::string event_session(double wall, int64_t step, SessionStatus status, const std::string& checkpoint = "") {
    std::string session;
    pb_number(session, 1, (int64_t)status);
    if (!checkpoint.empty()) pb_text(session, 2, checkpoint);
    return event_message(wall, step, 7, session);
}

// The numbers of an object, as floats, but for its step: what is null, nested, a text, true or false, or beyond the
// range of a float has no point. "": there are none
inline std::string event_scalars(double wall, int64_t step, const nlohmann::ordered_json& numbers) {
    std::string summary;
    for (const auto& item : numbers.items()) {
        if (item.key() == "step" || !item.value().is_number()) continue;
        const float number = (float)item.value().get<double>();
        if (!std::isfinite(number)) continue;
        std::string value;
        pb_text(value, 1, item.key());
        pb_float(value, 2, number);
        pb_bytes(summary, 1, value);
    }
    return summary.empty() ? "" : event_message(wall, step, 5, summary);
}

inline std::string event_tensor(double wall, int64_t step, const std::string& tag, const std::string& plugin,
                                const std::string& content, const std::string& tensor) {
    std::string data, metadata, value, summary;
    pb_text(data, 1, plugin);
    if (!content.empty()) pb_bytes(data, 2, content);
    pb_bytes(metadata, 1, data);
    pb_number(metadata, 4, 2);
    pb_text(value, 1, tag);
    pb_bytes(value, 8, tensor);
    pb_bytes(value, 9, metadata);
    pb_bytes(summary, 1, value);
    return event_message(wall, step, 5, summary);
}

// text: Markdown, which the TEXT tab renders
inline std::string event_text(double wall, int64_t step, const std::string& tag, const std::string& text) {
    std::string tensor;
    pb_number(tensor, 1, 7);
    pb_bytes(tensor, 2, "");  // the shape of one string
    pb_text(tensor, 8, text);
    return event_tensor(wall, step, tag, "text", "", tensor);
}

// The HPARAMS tab takes a message from the metadata, beside an empty tensor
inline std::string event_hparams(double wall, int64_t step, const std::string& tag, int field,
                                 const std::string& info) {
    std::string content, shape, dimension, tensor;
    pb_bytes(content, field, info);
    pb_bytes(shape, 2, dimension);  // of length 0
    pb_number(tensor, 1, 1);
    pb_bytes(tensor, 2, shape);
    return event_tensor(wall, step, "_hparams_/" + tag, "hparams", content, tensor);
}

// A row of the HPARAMS tab. options: texts, numbers, true or false
inline std::string event_hparams_start(double wall, int64_t step, const nlohmann::ordered_json& options) {
    std::string info;
    for (const auto& item : options.items()) {
        std::string value, entry;
        if (item.value().is_boolean()) {
            pb_varint(value, 4 << 3);
            pb_varint(value, item.value().get<bool>());
        } else if (item.value().is_number()) {
            pb_double(value, 2, item.value().get<double>());
        } else {
            pb_text(value, 3, item.value().get<std::string>());
        }
        pb_text(entry, 1, item.key());
        pb_bytes(entry, 2, value);
        pb_bytes(info, 1, entry);
    }
    pb_double(info, 5, wall);
    return event_hparams(wall, step, "session_start_info", 3, info);
}

// its run has ended in order
inline std::string event_hparams_end(double wall, int64_t step) {
    std::string info;
    pb_number(info, 1, 1);
    pb_double(info, 2, wall);
    return event_hparams(wall, step, "session_end_info", 4, info);
}

// ---------------------------------------------------------------------------------------------------------------------
// reading, as far as cutting needs it

struct EventRecord {
    int64_t step = 0;
    SessionStatus status = SessionStatus::none;
    uint64_t end = 0;  // byte behind it
};

inline uint64_t get_little_endian(const uint8_t* p, int n) {
    uint64_t v = 0;
    for (int i = 0; i < n; i++) v |= (uint64_t)p[i] << 8 * i;
    return v;
}

// One field of a message. value: a number, or where the bytes begin, of which there are `length`
struct PbField {
    int number = 0, type = 0;
    uint64_t value = 0, length = 0;
};

// false: it ends before n, or is none
inline bool pb_get_varint(const uint8_t* p, uint64_t n, uint64_t* at, uint64_t* v) {
    *v = 0;
    for (int shift = 0; shift < 64 && *at < n; shift += 7) {
        const uint8_t byte = p[(*at)++];
        *v |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) return true;
    }
    return false;
}

inline bool pb_get(const uint8_t* p, uint64_t n, uint64_t* at, PbField* field) {
    uint64_t key = 0;
    if (!pb_get_varint(p, n, at, &key) || key >> 3 > 536870911) return false;
    field->number = (int)(key >> 3), field->type = (int)(key & 7);
    if (field->type == 0) return pb_get_varint(p, n, at, &field->value);
    if (field->type == 2) {
        if (!pb_get_varint(p, n, at, &field->length)) return false;
    } else {
        field->length = field->type == 1 ? 8 : 4;
        if (field->type != 1 && field->type != 5) return false;
    }
    if (field->length > n - *at) return false;
    field->value = *at;
    *at += field->length;
    return true;
}

// step and status of an Event of n bytes; false: it is none
inline bool event_parse(const uint8_t* p, uint64_t n, EventRecord* record) {
    PbField field, inner;
    for (uint64_t at = 0; at < n;) {
        if (!pb_get(p, n, &at, &field)) return false;
        if (field.number == 2 && field.type == 0) record->step = (int64_t)field.value;
        if (field.number != 7 || field.type != 2) continue;
        for (uint64_t i = 0; i < field.length;) {
            if (!pb_get(p + field.value, field.length, &i, &inner)) return false;
            if (inner.number == 1 && inner.type == 0) record->status = (SessionStatus)inner.value;
        }
    }
    return true;
}

// The records up to the end of a file, or to the first that is torn (power loss) or damaged: no reader comes beyond it
inline std::vector<EventRecord> event_records(const uint8_t* data, uint64_t size) {
    std::vector<EventRecord> records;
    for (uint64_t at = 0; size - at >= 16;) {
        const uint8_t* p = data + at;
        const uint64_t length = get_little_endian(p, 8);
        if (get_little_endian(p + 8, 4) != masked_crc32c(p, 8) || length > size - at - 16) break;
        if (get_little_endian(p + 12 + length, 4) != masked_crc32c(p + 12, (size_t)length)) break;
        EventRecord record;
        if (!event_parse(p + 12, length, &record)) break;
        record.end = at += 16 + length;
        records.push_back(record);
    }
    return records;
}

inline std::vector<EventRecord> event_records(const std::string& path) {
    const MappedFile file(path);
    return event_records(file.data, file.size);
}

// What a run that goes on from the checkpoint of a step keeps of its event files. again: the checkpoint was saved before
// the numbers of its step were logged, which come again; another of the step may have followed, before a death
inline void cut_events(const std::string& folder, int64_t step, bool again) {
    std::vector<std::pair<std::string, uint64_t>> kept;  // path, bytes
    int saved = -1;                                      // the file that has the checkpoint
    uint64_t saved_end = 0;
    const std::set<std::string> written = written_names(folder, WrittenKind::run);
    for (const std::string& name : event_files(folder)) {
        if (!written.count(name)) continue;
        kept.push_back({folder + "/" + name, 0});
        bool before = true;
        for (const EventRecord& r : event_records(kept.back().first)) {
            if (before = before && r.step <= step; before) kept.back().second = r.end;
            if (r.status != SessionStatus::checkpoint || r.step != step || (again && saved >= 0)) continue;
            saved = (int)kept.size() - 1, saved_end = r.end;
        }
    }
    for (int i = 0; i < (int)kept.size(); i++) {
        const auto& [path, end] = kept[i];
        if (saved >= 0 && i < saved) continue;  // cut when the one after it was begun
        const bool gone = saved >= 0 && i > saved;
        if ((gone ? unlink(path.c_str()) : truncate(path.c_str(), (off_t)(i == saved ? saved_end : end))) != 0)
            fail("cannot cut %s: %s", path.c_str(), strerror(errno));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// the events of a run; each call is one record, and nothing where the run has no event file

inline double unix_seconds() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

inline void log_event(RunDir& run, const std::string& event) {
    if (run.events.fd >= 0 && !event.empty()) run.events.append(tfrecord(event));
}

inline void log_event_scalars(RunDir& run, int64_t step, const nlohmann::ordered_json& numbers) {
    if (run.events.fd >= 0) log_event(run, event_scalars(unix_seconds(), step, numbers));
}

inline void log_event_text(RunDir& run, int64_t step, const std::string& tag, const std::string& text) {
    if (run.events.fd >= 0) log_event(run, event_text(unix_seconds(), step, tag, text));
}

// before it is saved
inline void log_event_checkpoint(RunDir& run, int64_t step, const std::string& folder) {
    log_event(run, event_session(unix_seconds(), step, SessionStatus::checkpoint, folder));
}

// The first records of a run's event file, if it writes one. step: that it goes on behind, -1: it begins; again: as cut_events
// has it
inline void begin_events(RunDir& run, int64_t step, bool again) {
    if (step >= 0) cut_events(run.path, step, again);
    if (run.events_name.empty()) return;
    run.events = AppendFile(run.path + "/" + run.events_name, false);
    log_event(run, event_version(unix_seconds()));
    // drops what has this step or a later one
    log_event(run, event_session(unix_seconds(), again ? step : step + 1, SessionStatus::start));
}
