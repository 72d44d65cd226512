#!/usr/bin/env python3
"""Writes the event file that test_tfevents.cpp expects, test/golden/events.tfevents, with TensorBoard's own protobuf messages
and record writer.

  python3 test/make_golden_events.py
Needs tensorboard (2.21 made the file that is there).
"""
import os

from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata, plugin_data_pb2
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", "events.tfevents")
WALL = 1700000000.25


def event(step, **what):
    return event_pb2.Event(wall_time=WALL, step=step, **what)


def text_value(tag, text):
    metadata = text_metadata.create_summary_metadata(None, None)
    metadata.data_class = summary_pb2.DATA_CLASS_TENSOR
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[text.encode()])
    tensor.tensor_shape.SetInParent()
    return summary_pb2.Summary.Value(tag=tag, tensor=tensor, metadata=metadata)


def hparams_value(tag, data):
    metadata = hparams_metadata.create_summary_metadata(data)
    metadata.data_class = summary_pb2.DATA_CLASS_TENSOR
    return summary_pb2.Summary.Value(tag=tag, tensor=hparams_metadata.NULL_TENSOR, metadata=metadata)


def summary(*values):
    return summary_pb2.Summary(value=values)


def scalar(tag, value):
    return summary_pb2.Summary.Value(tag=tag, simple_value=value)


def events():
    log = event_pb2.SessionLog
    yield event(0, file_version="brain.Event:2")
    yield event(0, session_log=log(status=log.START))
    start = plugin_data_pb2.SessionStartInfo(start_time_secs=WALL)
    start.hparams["learning_rate"].number_value = 3e-4
    yield event(0, summary=summary(hparams_value(
        hparams_metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=start))))
    yield event(0, summary=summary(text_value("configuration", "| a | b |\n| --- | --- |\n| \u00e9 | `x|y` |\n")))
    yield event(1, summary=summary(scalar("loss", 0.1), scalar("rewards/exact/mean", 0.0), scalar("num_tokens", 1e9)))
    yield event(300, summary=summary(scalar("reward a/b c:\u00e9\"\n", -1.5e-42)))  # a subnormal float
    yield event(300, session_log=log(status=log.CHECKPOINT, checkpoint_path="out/checkpoint-300"))
    end = plugin_data_pb2.SessionEndInfo(status=1, end_time_secs=WALL)
    yield event(2**40, summary=summary(hparams_value(
        hparams_metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=end))))


with open(PATH, "wb") as file:
    writer = RecordWriter(file)
    for e in events():
        writer.write(e.SerializeToString(deterministic=True))
print(PATH, os.path.getsize(PATH), "bytes")
