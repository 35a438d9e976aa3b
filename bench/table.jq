# SPDX-License-Identifier: BSD-3-Clause
#
# From samples (an array of what bench/run's measure writes) to the table.
# A ratio is the median of the ratios of the rounds: what disturbs one round
# disturbs both sides of its ratio.  The range of the rounds is in brackets.
# With more than one connection, the goal is the ratio with one, less the
# tolerance.  raw/qemu: what the limit allows.  CPU us: what a request costs
# ours, qemu and raw.

def median: sort | (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2;
def fixed (n): (pow (10; n) | round) as $p
  | (. * $p | round | tostring) as $digits
  | ("0" * ([0, n + 1 - ($digits | length)] | max) // "") + $digits
  | .[:-n] + "." + .[-n:];
def pad ($width): . + (" " * ($width - length) // "");

# In: the samples of one row and number of connections.
def rates ($server): map (select (.server == $server) | .rate);
def ratios ($one; $other):
  group_by (.round)
  | map (select (any (.server == $one) and any (.server == $other)))
  | map ((rates ($one) | first) / (rates ($other) | first));
def ratios ($other): ratios ("ours"; $other);
def rate_cell ($server):
  rates ($server)
  | if length == 0 then "" else "\(median | round)" end;
def cpu_cell:
  [("ours", "qemu", "raw") as $server
   | map (select (.server == $server) | .server_us)
   | if length == 0 then empty else median | fixed (1) end]
  | join (" ");

# In: ratios of one line; $goal is null where there is none.
def reached ($goal): $goal == null or median >= $goal;
def ratio_cell ($goal):
  if length == 0 then "" else
  "\(median | fixed (2)) [\(min | fixed (2))..\(max | fixed (2))]"
  + if $goal == null then "" else " (>= \($goal | fixed (2)))" end
  end;

def line ($single):
  . as $line | first as $head
  | ["qemu", "raw"]
  | map (. as $other
         | { ratios: ($line | ratios ($other)),
             goal: (if $head["goal_" + $other] == null then null
                    elif $head.connections == 1 then $head["goal_" + $other]
                    elif $single == null then null
                    else ($single | ratios ($other) | median)
                         * (1 - $tolerance)
                    end) })
  | . as $pair
  | [ "\($head.row), \($head.connections) conn., \($head.unit)",
      ("ours", "qemu", "raw" | . as $server | $line | rate_cell ($server)),
      ($pair[] | .goal as $goal | .ratios | ratio_cell ($goal)),
      ($line | ratios ("raw"; "qemu")
       | if length == 0 then "" else median | fixed (2) end),
      ($line | cpu_cell),
      if all ($pair[]; .goal as $goal | .ratios | reached ($goal))
      then "PASS" else "MISS" end ];

# Rows stay in the order in which they were measured.
. as $samples
| (reduce $samples[].row as $row
     ([]; if index ($row) then . else . + [$row] end))
| map (. as $row
       | $samples | map (select (.row == $row)) | group_by (.connections)
       | (map (select (first.connections == 1)) | first) as $single
       | map (line ($single)))
| add
| [["row", "ours", "qemu", "raw", "ours/qemu (goal)", "ours/raw (goal)",
    "raw/qemu", "CPU us", "result"]] + .
| (transpose | map (map (length) | max)) as $widths
| map ([., $widths] | transpose
       | map (. as [$cell, $width] | $cell | pad ($width))
       | join (" | ") | sub (" +$"; ""))
| .[0], (.[0] | gsub ("[^|]"; "-")), .[1:][],
  "",
  ($samples | map (.others)
   | "Others used \(add / length * 10 | round | . / 10) % of the CPUs, "
     + "at most \(max) % during one measurement."
     + if add / length > 5 then
         "\nThe machine was not quiet: these figures decide nothing."
       else "" end)
