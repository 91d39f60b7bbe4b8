#!/usr/bin/env bash
# `ray up`, a job and `ray down` with the file $1, for tests/test_launcher.py: as process 1 of namespaces of its own
# (network, processes, mounts), so that its nodes have the usual ports and `ray stop` ends no other Ray on this host.
# $2 is the home of the one user of both nodes, with venv, shards, keys and the token; the rest is the job's command.
set -euo pipefail
file=$1 home=$2
shift 2

mkdir -p /tmp/ray "$home/ray"
mount --bind "$home/ray" /tmp/ray
mount --bind "$home/passwd" /etc/passwd
mount -t tmpfs tmpfs /run
mkdir /run/sshd
ip link set lo up
export HOME=$home PATH="$home/venv/bin:$PATH" RAY_AUTH_MODE=token RAY_UP_enable_autoscaler_v2=1
/usr/sbin/sshd -f "$home/sshd_config" -E "$home/sshd.log"

say() { printf '\n$ %s\n' "$*"; }

plain=(--log-style=pretty --log-color=false)

say ray up
ray up --yes --no-config-cache "${plain[@]}" "$file" 2>&1

for _ in $(seq 100); do # the head's autoscaler sets the second node up, over SSH as well
    ray status 2>/dev/null | grep -q '0.0/4.0 CPU' && break
    sleep 1
done
say ray exec: ray status
ray exec "${plain[@]}" "$file" 'ray status' 2>&1

say who listens
ss -Hltn | awk '{print $4}' | grep -E ':(22|5000|6379|8265|10001)$' | sort -u

ray dashboard --port 9265 "$file" >"$home/tunnel.log" 2>&1 &
for _ in $(seq 60); do curl -s -o "$home/answer" http://127.0.0.1:9265/ && break; sleep 0.5; done
say job server, without the token
curl -s -o "$home/answer" -w '%{http_code}\n' http://127.0.0.1:9265/api/jobs/

say ray job submit
(cd "$home/post" && RAY_ADDRESS=http://127.0.0.1:9265 ray job submit --working-dir . -- "$@" 2>&1)

say ray down
ray down --yes "${plain[@]}" "$file" 2>&1
sleep 3
echo "raylets left: $(pgrep -c raylet || true)"
