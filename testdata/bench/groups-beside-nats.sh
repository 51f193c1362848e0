#!/usr/bin/env bash
# Measures consumer groups on three brokers (R3, fsync before each ack) beside NATS JetStream's durable pull consumer with explicit
# acks on three nodes (R3, file storage) in the same run: A B A B, because an absolute figure of a shared machine means
# nothing. Everything on loopback; stops by itself.
#   testdata/bench/groups-beside-nats.sh [ROUNDS [RECORDS]]      default 2, 300000
# Needs on PATH (or in $(go env GOPATH)/bin):
#   go install github.com/nats-io/nats-server/v2@v2.15.2
#   go install github.com/nats-io/natscli/nats@v0.5.1
# Figures: records a second handled, with the last commit or ack; the latency from publish to handler at 1,000/s.
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-2} records=${2:-300000}
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

for round in $(seq "$rounds"); do
  echo "round $round"
  natsd always
  natsbench js pub async s --create --stream b --replicas 3 --storage file --clients 1 --msgs "$records" --size 128B --batch 500 >/dev/null
  for consumer in c1 c2; do
    nats --server "$urls" consumer add b "$consumer" --pull --ack explicit --deliver all --replicas 3 --max-pending 10000 --defaults >/dev/null
  done
  row "NATS, fsync: consume, explicit acks, 128 B" "$(natsbench js consume --stream b --consumer c1 --msgs "$records" --acks explicit --batch 500) /s"
  row "NATS, fsync: fetch, explicit acks, 128 B" "$(natsbench js fetch --stream b --consumer c2 --msgs "$records" --acks explicit --batch 500) /s"
  stop
  parleyd
  parley topic create load --partitions 1 --replicas 3 >/dev/null
  parley bench pub load --records "$((records * 3))" --size 128B --keys 10000 >/dev/null
  row "Parley, exclusive group: handled, committed, 128 B" "$(parley -o json bench sub load --group e --records "$((records * 3))" | tail -n 1 | field records_per_s) /s"
  row "Parley, shared group: acked, 128 B" "$(parley -o json bench sub load --group s --shared --records "$records" | tail -n 1 | field records_per_s) /s"
  row "Parley, key-ordered group, 10,000 keys, 128 B" "$(parley -o json bench sub load --group k --shared --key-ordered --records "$records" | tail -n 1 | field records_per_s) /s"
  parley topic create small --partitions 3 --replicas 3 >/dev/null
  for mode in "" "--shared" "--shared --key-ordered"; do
    # shellcheck disable=SC2086 # mode is flags
    result=$(parley -o json bench e2e small --group "l${#mode}" $mode --rate 1000 --size 128B --duration 10s | tail -n 1)
    row "Parley, 1,000/s to a handler, ${mode:-exclusive}: p50, p99" "$(field p50_us <<<"$result"), $(field p99_us <<<"$result") µs"
  done
  stop
done
