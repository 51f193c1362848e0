#!/usr/bin/env bash
# Measures three brokers, R3, beside a three-node NATS JetStream cluster, R3, on one machine: NATS's default
# (no fsync before the ack), Parley, NATS `always` (fsync before the ack), and so on in turn, because an absolute figure
# of a shared machine means nothing. Everything on loopback; stops by itself. Prints each round, then the ratios
# of the medians. Beside records a second: bytes that all three processes together wrote to disk and CPU seconds that
# they took, for each record; these hold on a busy machine, too.
#   testdata/bench/r3-beside-nats.sh [ROUNDS] [RECORDS]      default 3 rounds, 300000 records
# Needs on PATH (or in $(go env GOPATH)/bin), python3, and ports of the kernel's choice:
#   go install github.com/nats-io/nats-server/v2@v2.15.2
#   go install github.com/nats-io/natscli/nats@v0.5.1
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-3}
records=${2:-300000}
lone=500
export PATH=$PATH:$(go env GOPATH)/bin
for tool in nats nats-server python3; do
  command -v "$tool" >/dev/null || { echo "$tool is not on PATH: see the head of $0" >&2; exit 2; }
done
work=$(mktemp -d)
pids=()
stop() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  pids=()
}
trap 'stop; rm -rf "$work"' EXIT
# PARLEY_BIN names a directory with parleyd and parley of another version.
if [ -n "${PARLEY_BIN:-}" ]; then cp "$PARLEY_BIN/parleyd" "$PARLEY_BIN/parley" "$work/"; else go build -o "$work/" ./cmd/parleyd ./cmd/parley; fi

ports=$(python3 - <<'P'
import socket
s = [socket.socket() for _ in range(12)]
for x in s: x.bind(("127.0.0.1", 0))
print(*[x.getsockname()[1] for x in s])
P
)
port=($ports)
servers="nats://127.0.0.1:${port[0]},nats://127.0.0.1:${port[1]},nats://127.0.0.1:${port[2]}"

parleyds() {
  rm -rf "$work/data"
  local initial="b1=127.0.0.1:${port[3]},b2=127.0.0.1:${port[4]},b3=127.0.0.1:${port[5]}"
  for i in 0 1 2; do
    "$work/parleyd" --name "b$((i + 1))" --data-dir "$work/data/$i" --listen "127.0.0.1:${port[i]}" --http "127.0.0.1:${port[9 + i]}" \
      --peer-listen "127.0.0.1:${port[3 + i]}" --raft-listen "127.0.0.1:${port[6 + i]}" --initial-cluster "$initial" \
      >"$work/parleyd$i.log" 2>&1 &
    pids+=($!)
  done
  until parley cluster health >/dev/null 2>&1; do sleep 0.2; done
}
parley() { "$work/parley" --server "$servers" "$@"; }
field() { tail -n 1 | sed -n "s/.*\"$1\":\([0-9.]*\).*/\1/p"; }

natsds() { # sync_interval
  rm -rf "$work/nats"
  mkdir -p "$work/nats"
  for i in 0 1 2; do
    cat >"$work/nats/$i.conf" <<C
server_name: n$i
listen: 127.0.0.1:${port[i]}
jetstream { store_dir: "$work/nats/$i", sync_interval: $1, max_mem: 1G, max_file: 20G }
cluster { name: peer, listen: 127.0.0.1:${port[3 + i]}, routes: [nats://127.0.0.1:${port[3]}, nats://127.0.0.1:${port[4]}, nats://127.0.0.1:${port[5]}] }
C
    nats-server -c "$work/nats/$i.conf" >"$work/nats/$i.log" 2>&1 &
    pids+=($!)
  done
  until natscli stream add probe --subjects probe --replicas 3 --storage file --defaults >/dev/null 2>&1; do sleep 0.2; done
  natscli stream rm probe --force >/dev/null
}
natscli() { nats --server "$servers" "$@"; }
rate() { sed -n 's/.*stats: \([0-9,]*\) msgs\/sec.*/\1/p' | tr -d , | tail -n 1; }
natspub() { natscli bench js pub "$@" --no-progress 2>&1 | rate; }

# cost prints what the servers wrote to disk, in bytes, and their CPU time, in clock ticks.
cost() {
  local bytes=0 ticks=0
  for pid in "${pids[@]}"; do
    bytes=$((bytes + $(sed -n 's/^write_bytes: //p' "/proc/$pid/io")))
    ticks=$((ticks + $(awk '{print $14 + $15}' "/proc/$pid/stat")))
  done
  echo "$bytes $ticks"
}
# measure NAME RECORDS COMMAND...: a command that prints a rate.
measure() {
  local name=$1 n=$2 before after value
  shift 2
  before=($(cost))
  value=$("$@")
  after=($(cost))
  [ -n "$value" ] || { echo "$name gave no figure: $*" >&2; exit 1; }
  python3 - "$name" "$n" "$value" "$((after[0] - before[0]))" "$((after[1] - before[1]))" "$(getconf CLK_TCK)" <<'P' | tee -a "$work/rows"
import sys
name, n, value, bytes, ticks, hz = sys.argv[1], *map(float, sys.argv[2:])
print(f"{name:34} {value:12.0f} /s {bytes / n:9.0f} B/record {ticks / hz / n * 1e6:8.1f} us CPU/record")
P
}
# One after the other, each waiting for its ack: records a second is the inverse of the mean latency; percentiles follow.
parley_lone() { parley -o json bench pub lone --plain --outstanding 1 --records "$lone" --size 1KiB | tee "$work/lone.json" | field records_per_s; }
nats_lone() { natspub sync l --create --stream lone --replicas 3 --storage file --clients 1 --msgs "$lone" --size 1KB --purge; }
parley_load() { parley -o json bench pub load --records "$records" --size 1KiB | field records_per_s; }
nats_load() { natspub async s --create --stream load --replicas 3 --storage file --clients 1 --msgs "$1" --size 1KB --batch 500; }

for round in $(seq "$rounds"); do
  echo "round $round, load $(cut -d' ' -f1 /proc/loadavg)"
  natsds 2m
  measure "NATS R3 default, 1 KiB" "$records" nats_load "$records"
  stop
  parleyds
  parley topic create load --partitions 1 --replicas 3 >/dev/null
  parley topic create lone --partitions 1 --replicas 3 >/dev/null
  # Until leaders, links and files are there.
  parley_load >/dev/null
  until parley_lone >/dev/null 2>&1; do sleep 1; done
  measure "Parley R3 SDK, 1 KiB" "$((records + records / 10))" parley_load # its warm-up costs, too
  measure "Parley R3 lone publish" "$lone" parley_lone
  echo "  microseconds: p50 $(field p50_us <"$work/lone.json"), p99 $(field p99_us <"$work/lone.json")"
  stop
  natsds always
  measure "NATS R3 always, 1 KiB" "$((records / 5))" nats_load "$((records / 5))"
  measure "NATS R3 always lone publish" "$lone" nats_lone
  stop
done
python3 - "$work/rows" <<'P'
import statistics, sys
rates = {}
for line in open(sys.argv[1]):
    name, rest = line[:34].strip(), line[34:].split()
    rates.setdefault(name, []).append(float(rest[0]))
m = {k: statistics.median(v) for k, v in rates.items()}
print("medians")
for k, v in m.items(): print(f"  {k:34} {v:12.0f} /s")
sdk = m["Parley R3 SDK, 1 KiB"]
print(f"SDK R3 / NATS R3 default: {sdk / m['NATS R3 default, 1 KiB']:.2f} (wanted: 1.2 or more)")
print(f"SDK R3 / NATS R3 always:  {sdk / m['NATS R3 always, 1 KiB']:.2f} (wanted: 1.8 or more)")
print(f"lone latency, Parley / NATS always: {m['NATS R3 always lone publish'] / m['Parley R3 lone publish']:.2f} (wanted: 1.3 or less)")
P
