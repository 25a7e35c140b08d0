"""The selective scan in ONNX's own operators: one that engines can loop over, where PyTorch's exporter would unroll it.

``networks/scans/blocks.py`` says what it computes and how it is cut into runs; this is the same, with ``Scan`` for each
of its three loops. Their bodies read nothing from outside, so that a graph in FP16 may leave them in FP32.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

SCAN_DOMAIN = "espan_deploy"
"""Of the operator that networks are exported with, SelectiveScan; no file holds it."""

SCAN_AS_FUNCTION = f"""
<opset_import: ["": 20], domain: "{SCAN_DOMAIN}">
SelectiveScan <run> (x, step, rate, write, read) => (y) {{
  run = Constant <value_ints: ints = @run> ()
  zero = Constant <value_ints = [0]> ()
  one = Constant <value_ints = [1]> ()
  three = Constant <value_ints = [3]> ()
  four = Constant <value_ints = [4]> ()
  rest = Constant <value_ints = [-1]> ()
  unpadded = Constant <value_ints = [0, 0, 0, 0, 0, 0, 0]> ()

  length = Shape <start = 3> (x)
  minus_length = Neg (length)
  missing = Mod (minus_length, run)
  pads = Concat <axis = 0> (unpadded, missing)
  value = Mul (step, x)
  of_channels = Shape <end = 3> (x)
  of_states = Shape <end = 3> (write)
  channel_runs = Concat <axis = 0> (of_channels, rest, run)
  state_runs = Concat <axis = 0> (of_states, rest, run)
  padded_step = Pad (step, pads)
  padded_value = Pad (value, pads)
  padded_write = Pad (write, pads)
  padded_read = Pad (read, pads)
  step_runs = Reshape (padded_step, channel_runs)
  value_runs = Reshape (padded_value, channel_runs)
  write_runs = Reshape (padded_write, state_runs)
  read_runs = Reshape (padded_read, state_runs)
  steps = Transpose <perm = [4, 0, 1, 2, 3]> (step_runs)
  values = Transpose <perm = [4, 0, 1, 2, 3]> (value_runs)
  write_first = Transpose <perm = [4, 2, 0, 1, 3]> (write_runs)
  read_first = Transpose <perm = [4, 2, 0, 1, 3]> (read_runs)
  writes = Unsqueeze (write_first, four)
  reads = Unsqueeze (read_first, four)
  rate_first = Transpose <perm = [2, 0, 1]> (rate)
  rate_of_one = Unsqueeze (rate_first, one)
  rates = Unsqueeze (rate_of_one, rest)

  whole_step = ReduceSum <keepdims = 0> (steps, zero)
  whole_exponent = Mul (whole_step, rates)
  left = Exp (whole_exponent)
  state_shape = Shape (left)
  nothing = ConstantOfShape <value = float[1] {{0.0}}> (state_shape)
  rates_after, added = Scan <num_scan_inputs = 3, body = adding (
      float[S, one, G, D, last] a_rates, float[S, N, G, D, M] a_state,
      float[N, G, D, M] a_step, float[N, G, D, M] a_value, float[S, N, G, broad, M] a_write
    ) => (float[S, one, G, D, last] a_same, float[S, N, G, D, M] a_next) {{
    a_same = Identity (a_rates)
    a_exponent = Mul (a_step, a_rates)
    a_left = Exp (a_exponent)
    a_kept = Mul (a_left, a_state)
    a_written = Mul (a_value, a_write)
    a_next = Add (a_kept, a_written)
  }}> (rates, nothing, steps, values, writes)

  joined_shape = Shape <end = 4> (left)
  no_run = ConstantOfShape <value = float[1] {{0.0}}> (joined_shape)
  after_all, before = Scan <num_scan_inputs = 2, scan_input_axes = [4, 4], scan_output_axes = [4], body = joining (
      float[S, N, G, D] j_state, float[S, N, G, D] j_left, float[S, N, G, D] j_added
    ) => (float[S, N, G, D] j_next, float[S, N, G, D] j_before) {{
    j_kept = Mul (j_left, j_state)
    j_next = Add (j_kept, j_added)
    j_before = Identity (j_state)
  }}> (no_run, left, added)

  rates_last, state_last, read_out = Scan <num_scan_inputs = 4, body = reading (
      float[S, one, G, D, last] r_rates, float[S, N, G, D, M] r_state, float[N, G, D, M] r_step,
      float[N, G, D, M] r_value, float[S, N, G, broad, M] r_write, float[S, N, G, broad, M] r_read
    ) => (float[S, one, G, D, last] r_same, float[S, N, G, D, M] r_next, float[N, G, D, M] r_y) {{
    r_same = Identity (r_rates)
    r_exponent = Mul (r_step, r_rates)
    r_left = Exp (r_exponent)
    r_kept = Mul (r_left, r_state)
    r_written = Mul (r_value, r_write)
    r_next = Add (r_kept, r_written)
    r_seen = Mul (r_next, r_read)
    r_states = Constant <value_ints = [0]> ()
    r_y = ReduceSum <keepdims = 0> (r_seen, r_states)
  }}> (rates, before, steps, values, writes, reads)

  y_runs = Transpose <perm = [1, 2, 3, 4, 0]> (read_out)
  flat = Concat <axis = 0> (of_channels, rest)
  y_padded = Reshape (y_runs, flat)
  y = Slice (y_padded, zero, length, three)
}}
"""
"""(x, step, rate, write, read) -> y, of the shapes that ``selective_scan`` takes; float32. run: [the pixels of one]."""


def lower_scans(model: ir.Model) -> None:
    """Put ONNX's operators in place of the selective scans that a network was exported with, in place."""
    if any(node.domain == SCAN_DOMAIN for node in model.graph):
        function = ir.serde.deserialize_function(onnx.parser.parse_function(SCAN_AS_FUNCTION))
        model.functions[function.identifier()] = function
        InlinePass()(model)
        model.opset_imports.pop(SCAN_DOMAIN, None)
