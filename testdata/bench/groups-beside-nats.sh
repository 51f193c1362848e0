#!/usr/bin/env bash
# Measures consumer groups on three brokers (R3, fsync before each ack) beside NATS JetStream's durable pull consumer with explicit
# acks on three nodes (R3, file storage) in the same run: A B A B, because an absolute figure of a shared machine means
# nothing. Everything on loopback; stops by itself.
#   testdata/bench/groups-beside-nats.sh [ROUNDS [RECORDS]]      default 2, 1000000
# Needs on PATH (or in $(go env GOPATH)/bin):
#   go install github.com/nats-io/nats-server/v2@v2.15.2
#   go install github.com/nats-io/natscli/nats@v0.5.1
# Figures: records a second handled, with the last commit or ack; the latency from publish to handler at 1,000/s. The last lines
# compare the medians with what is wanted: exclusive 300,000/s, shared 1.5 times NATS, key-ordered 0.7 of shared with as many members,
# p50 under 4 ms and p99 under 20 ms. On a busy machine only the ratios mean something, and latencies nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-2} records=${2:-1000000}
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
go build -o "$work/" ./cmd/parleyd ./cmd/parley

free_ports() { python3 -c 'import socket
s=[socket.socket() for _ in range(12)]
for x in s: x.bind(("127.0.0.1",0))
print(*(x.getsockname()[1] for x in s))'; }
read -r -a port <<<"$(free_ports)" # of each node: clients, HTTP, peers, Raft

await() { # until something accepts on the port
  for _ in $(seq 600); do
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return 0
    sleep 0.05
  done
  echo "nothing listens on port $1" >&2
  return 1
}
until_ready() { # the HTTP port of a broker
  for _ in $(seq 600); do
    python3 -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:$1/readyz', timeout=2)" 2>/dev/null && return 0
    sleep 0.1
  done
  echo "the broker at port $1 does not become ready" >&2
  return 1
}

parleyd() {
  local list="" i
  for i in 1 2 3; do list+="${list:+,}b$i=127.0.0.1:${port[i * 4 - 2]}"; done
  rm -rf "$work"/data*
  for i in 1 2 3; do
    "$work/parleyd" --name "b$i" --initial-cluster "$list" --data-dir "$work/data$i" --listen "127.0.0.1:${port[i * 4 - 4]}" \
      --http "127.0.0.1:${port[i * 4 - 3]}" --peer-listen "127.0.0.1:${port[i * 4 - 2]}" --raft-listen "127.0.0.1:${port[i * 4 - 1]}" \
      >"$work/b$i.log" 2>&1 &
    pids+=($!)
  done
  for i in 1 2 3; do until_ready "${port[i * 4 - 3]}"; done
}
urls="nats://127.0.0.1:${port[0]},nats://127.0.0.1:${port[4]},nats://127.0.0.1:${port[8]}"
parley() { "$work/parley" --server "$urls" --timeout 20s "$@"; }
field() { sed -n "s/.*\"$1\":\([0-9.]*\).*/\1/p"; }

natsd() { # sync_interval
  local i routes="" up=
  for i in 1 2 3; do routes+="${routes:+, }nats://127.0.0.1:${port[i * 4 - 2]}"; done
  for i in 1 2 3; do
    rm -rf "$work/n$i"
    cat >"$work/n$i.conf" <<C
server_name: n$i
listen: 127.0.0.1:${port[i * 4 - 4]}
jetstream { store_dir: "$work/n$i", sync_interval: $1, max_mem: 1G, max_file: 20G }
cluster { name: peer, listen: 127.0.0.1:${port[i * 4 - 2]}, routes: [$routes] }
C
    nats-server -c "$work/n$i.conf" >"$work/n$i.log" 2>&1 &
    pids+=($!)
  done
  for i in 1 2 3; do await "${port[i * 4 - 4]}"; done
  for _ in $(seq 120); do # until there is a meta leader
    nats --server "$urls" stream ls >/dev/null 2>&1 && up=1 && break
    sleep 0.25
  done
  [ -n "$up" ] || { echo "the NATS cluster does not come up" >&2; return 1; }
}
natsbench() { nats --server "$urls" bench "$@" --no-progress 2>&1 | sed -n 's/.*stats: \([0-9,]*\) msgs\/sec.*/\1/p' | tr -d , | tail -n 1; }

row() { printf '%-52s %14s\n' "$1" "$2"; }
rate() { # NAME LABEL FIGURE: shows it and keeps it for the end
  row "$2" "$(printf '%.0f' "$3") /s"
  echo "$1 $3" >>"$work/figures"
}
consumed() { # MEMBERS GROUP FLAGS...: records a second of so many members
  parley -o json bench sub load --group "$2" --records "$records" --clients "$1" "${@:3}" | tail -n 1 | field records_per_s
}

for round in $(seq "$rounds"); do
  echo "round $round"
  natsd always
  natsbench js pub async s --create --stream b --replicas 3 --storage file --clients 1 --msgs "$records" --size 128B --batch 500 >/dev/null
  for consumer in c1 c2; do
    nats --server "$urls" consumer add b "$consumer" --pull --ack explicit --deliver all --replicas 3 --max-pending 10000 --defaults >/dev/null
  done
  rate nats "NATS, fsync: consume, explicit acks, 128 B" "$(natsbench js consume --stream b --consumer c1 --msgs "$records" --acks explicit --batch 500)"
  rate nats "NATS, fsync: fetch, explicit acks, 128 B" "$(natsbench js fetch --stream b --consumer c2 --msgs "$records" --acks explicit --batch 500)"
  stop
  parleyd
  parley topic create load --partitions 1 --replicas 3 >/dev/null
  parley bench pub load --records "$((records + records / 4))" --size 128B --keys 10000 >/dev/null
  rate exclusive "Parley, exclusive group: handled, committed, 128 B" "$(consumed 1 e)"
  for members in 1 4; do
    rate "shared$members" "Parley, shared group, members: $members, acked" "$(consumed $members "s$members" --shared)"
    rate "keyed$members" "Parley, key-ordered, 10,000 keys, members: $members" "$(consumed $members "k$members" --shared --key-ordered)"
  done
  parley topic create small --partitions 3 --replicas 3 >/dev/null
  for mode in "" "--shared" "--shared --key-ordered"; do
    # shellcheck disable=SC2086 # mode is flags
    result=$(parley -o json bench e2e small --group "l${#mode}" $mode --rate 1000 --size 128B --duration 10s | tail -n 1)
    row "Parley, 1,000/s to a handler, ${mode:-exclusive}: p50, p99" "$(field p50_us <<<"$result"), $(field p99_us <<<"$result") µs"
    echo "p50 $(field p50_us <<<"$result")" >>"$work/figures"
    echo "p99 $(field p99_us <<<"$result")" >>"$work/figures"
  done
  stop
done

echo "load $(cut -d' ' -f1-3 /proc/loadavg)"
python3 - "$work/figures" <<'P'
import statistics, sys
figures = {}
for line in open(sys.argv[1]):
    name, value = line.split()
    figures.setdefault(name, []).append(float(value))
middle = {name: statistics.median(values) for name, values in figures.items()}
def verdict(what, value, wanted, ok):
    print(f"{what:<52} {value:>14} {'' if ok else 'not '}{wanted}")
verdict("exclusive", f"{middle['exclusive']:,.0f} /s", "300,000/s or more", middle["exclusive"] >= 300_000)
best = max(figures["nats"])
verdict("shared, of NATS at its best", f"{middle['shared1'] / best:.2f}", "1.5 or more", middle["shared1"] >= 1.5 * best)
for n in "14":
    ratio = middle["keyed" + n] / middle["shared" + n]
    verdict(f"key-ordered of shared, members: {n}", f"{ratio:.2f}", "0.7 or more", ratio >= 0.7)
verdict("worst p50, p99 at 1,000/s", f"{max(figures['p50'])/1000:.1f}, {max(figures['p99'])/1000:.1f} ms", "under 4 and 20 ms", max(figures["p50"]) < 4000 and max(figures["p99"]) < 20000)
P
