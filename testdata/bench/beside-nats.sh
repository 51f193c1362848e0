#!/usr/bin/env bash
# Measures one broker beside one NATS JetStream server (R1, file storage) in the same run: A B A B, because
# an absolute figure of a shared machine means nothing. Everything on loopback; stops by itself.
#   testdata/bench/beside-nats.sh [ROUNDS]      default 2
# Needs on PATH (or in $(go env GOPATH)/bin):
#   go install github.com/nats-io/nats-server/v2@v2.15.2
#   go install github.com/nats-io/natscli/nats@v0.5.1
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-2}
export PATH=$PATH:$(go env GOPATH)/bin
for tool in nats nats-server; do
  command -v "$tool" >/dev/null || { echo "$tool is not on PATH: see the head of $0" >&2; exit 2; }
done
work=$(mktemp -d)
pid=
stop() { if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; pid=; fi; }
trap 'stop; rm -rf "$work"' EXIT
go build -o "$work/" ./cmd/parleyd ./cmd/parley

free_port() { python3 -c 'import socket; s=socket.socket(); s.bind(("127.0.0.1",0)); print(s.getsockname()[1])'; }
port=$(free_port) http=$(free_port) raft=$(free_port) peer=$(free_port)

await() { # until something accepts on the port
  for _ in $(seq 200); do
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return 0
    sleep 0.05
  done
  echo "nothing listens on port $1" >&2
  return 1
}

parleyd() {
  rm -rf "$work/data"
  "$work/parleyd" --data-dir "$work/data" --listen "127.0.0.1:$port" --http "127.0.0.1:$http" --raft-listen "127.0.0.1:$raft" \
    --peer-listen "127.0.0.1:$peer" >"$work/parleyd.log" 2>&1 &
  pid=$!
  await "$port"
}
parley() { "$work/parley" --server "nats://127.0.0.1:$port" "$@"; }
field() { sed -n "s/.*\"$1\":\([0-9.]*\).*/\1/p"; }

natsd() { # sync_interval
  rm -rf "$work/nats"
  printf 'listen: 127.0.0.1:%s\njetstream { store_dir: "%s", sync_interval: %s, max_mem: 1G, max_file: 20G }\n' "$port" "$work/nats" "$1" >"$work/nats.conf"
  nats-server -c "$work/nats.conf" >"$work/nats.log" 2>&1 &
  pid=$!
  await "$port"
}
natsbench() { nats --server "nats://127.0.0.1:$port" bench "$@" --no-progress 2>&1 | sed -n 's/.*stats: \([0-9,]*\) msgs\/sec.*/\1/p' | tr -d , | tail -n 1; }

row() { printf '%-34s %14s /s\n' "$1" "$2"; }

for round in $(seq "$rounds"); do
  echo "round $round"
  natsd 2m
  row "NATS, no fsync: async 1 KiB" "$(natsbench js pub async s --create --stream b --replicas 1 --storage file --clients 1 --msgs 300000 --size 1KB --batch 500)"
  stop
  parleyd
  parley topic create load >/dev/null
  row "Parley, SDK: 1 KiB" "$(parley -o json bench pub load --records 600000 --size 1KiB | tail -n 1 | field records_per_s)"
  stop
  natsd always
  row "NATS, fsync each: async 1 KiB" "$(natsbench js pub async s --create --stream b --replicas 1 --storage file --clients 1 --msgs 40000 --size 1KB --batch 500)"
  stop
  natsd 2m
  row "NATS, no fsync: async 128 B" "$(natsbench js pub async s --create --stream b --replicas 1 --storage file --clients 1 --msgs 500000 --size 128B --batch 500)"
  row "NATS: ordered read 128 B" "$(natsbench js ordered --stream b --msgs 500000)"
  stop
  parleyd
  parley topic create plain >/dev/null
  row "Parley, plain client, 500 out: 128 B" "$(parley -o json bench pub plain --plain --outstanding 500 --records 600000 --size 128B | tail -n 1 | field records_per_s)"
  parley topic create small >/dev/null
  row "Parley, SDK: 128 B" "$(parley -o json bench pub small --records 4000000 --size 128B | tail -n 1 | field records_per_s)"
  stop
  # From disk, not from memory: a broker that has just started.
  "$work/parleyd" --data-dir "$work/data" --listen "127.0.0.1:$port" --http "127.0.0.1:$http" --raft-listen "127.0.0.1:$raft" \
    --peer-listen "127.0.0.1:$peer" >"$work/parleyd.log" 2>&1 &
  pid=$!
  await "$port"
  row "Parley, SDK: read 128 B" "$(parley -o json bench sub small --records 4000000 | tail -n 1 | field records_per_s)"
  stop
done
