# shellcheck shell=bash disable=SC2154,SC2034
# Starts and stops the peers of the bench; sourced by bench/run, which sets root, build, dir,
# gate_core, load_core, up. Each subject NAME gets pid[NAME] (0: none of ours), port[NAME],
# args[NAME] (of bench_load, one word per line) and version[NAME]; missing[NAME] says why it is
# left out.
declare -A pid=() port=() args=() version=() missing=()
declare -a pids=() # all that must be gone at the end

say() { printf 'bench: %s\n' "$*" >&2; }

# PID…: TERM, and KILL for what is still there after 3 s. Ours only.
stop_pids() {
    local p i
    for p in "$@"; do kill -TERM "$p" 2>/dev/null || true; done
    for p in "$@"; do
        for ((i = 0; i < 30; i++)); do
            kill -0 "$p" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$p" 2>/dev/null || true
        wait "$p" 2>/dev/null || true
    done
    local -a rest=() # a number may be given to somebody else's process later
    for p in "${pids[@]}"; do
        case " $* " in *" $p "*) ;; *) rest+=("$p") ;; esac
    done
    pids=("${rest[@]}")
}

free_ports() { # COUNT: prints so many free ports of the loopback
    node -e '
        const net = require("net"), servers = [];
        const more = () => servers.length < +process.argv[1]
            ? servers.push(net.createServer().listen(0, "127.0.0.1", more))
            : servers.forEach(s => { console.log(s.address().port); s.close(); });
        more();' "$1"
}

# On one core, ended when bench/run ends in whatever way; sets started.
start_pinned() { # CORE OUT COMMAND…
    local core=$1 out=$2
    shift 2
    : >"$out" # readers may be faster than the child
    setpriv --pdeathsig TERM taskset -c "$core" "$@" >"$out" 2>&1 </dev/null &
    started=$!
    pids+=("$started")
}

answers() { curl -fs --noproxy '*' -m 2 -o /dev/null "$@" 2>/dev/null; }
wait_for() { # PID URL [CURL ARGUMENTS…]
    local process=$1 i
    shift
    for ((i = 0; i < 1500; i++)); do
        kill -0 "$process" 2>/dev/null || return 1
        if answers "$@"; then return 0; fi
        sleep 0.02
    done
    return 1
}

fill() { # TEMPLATE KEY: with the places of the run put in
    sed -e "s#@PORT@#$one_port#g; s#@UPSTREAM@#$up#g; s#@DIR@#$here#g; s#@HERE@#${1%/*}#g; s#@KEY@#$2#g" "$1"
}

start_nginx() { # NAME FOLDER
    mkdir -p "$here/body"
    fill "$root/bench/peers/$2/nginx.conf" sk-bench-of-nginx >"$here/nginx.conf"
    start_pinned "$gate_core" "$here/out" "$nginx" -e "$here/nginx.err" -c "$here/nginx.conf"
    args[$1]=$'--key\nsk-bench-of-nginx'
}

start_haproxy() {
    fill "$root/bench/peers/haproxy/haproxy.cfg" "" >"$here/haproxy.cfg"
    start_pinned "$gate_core" "$here/out" haproxy -db -f "$here/haproxy.cfg"
    args[haproxy]=
}

start_portkey() {
    # No answer to this is waited for or needed: no proxy, no update check, no postinstall step.
    start_pinned "$gate_core" "$here/out" env NODE_ENV=production TRUSTED_CUSTOM_HOSTS=127.0.0.1 \
        node "$portkey/node_modules/@portkey-ai/gateway/build/start-server.js" --headless \
        "--port=$one_port"
    args[portkey]=$'--header\nx-portkey-provider: openai\n--header\nx-portkey-custom-host: http://127.0.0.1:'"$up/v1"
}

# CONF COMMAND…: takes this shell's place, with the environment of the gateway in $here. To be called
# in a shell of its own: with &, so that the process is our child itself, or in parentheses.
moongate_exec() {
    cd "$here" || exit 1
    export HOST=127.0.0.1 PORT=$one_port MOONGATE_HOME=$root
    export DATABASE_URL=sqlite:///$here/data/moongate.db
    export ENCRYPTION_KEY=$secret_base64 SECRET_KEY=$secret_hex ADMIN_TOKEN=$secret_hex
    cp "$root/bench/peers/moongate/$1" gateway.conf.lua
    shift
    exec "$@"
}
moongate_verb() { # CONF VERB…
    local conf=$1
    shift
    (moongate_exec "$conf" "$build/moongate" "$@")
}

# Sets wrap, a prefix of a command: in a mount namespace of its own where the bench's certificate is the only one that the
# system trusts (the gateway has no setting for that).
trusting() {
    local bundle=/etc/ssl/certs/ca-certificates.crt
    local -a as_root=()
    if [ "$(id -u)" != 0 ]; then as_root=(--map-root-user); fi
    wrap=(unshare --mount "${as_root[@]}" sh -c "mount --bind \"\$0\" $bundle && exec \"\$@\"" "$dir/cert.pem")
}

start_moongate() { # NAME CONF URL; sets ready_ms, the time of the start
    local began_ns
    local -a wrap=()
    began_ns=$(date +%s%N)
    case $3 in https:*) trusting ;; esac
    moongate_exec "$2" setpriv --pdeathsig TERM taskset -c "$gate_core" "${wrap[@]}" \
        "$build/moongate" run \
        >"$here/out" 2>"$here/log" </dev/null &
    started=$!
    pids+=("$started")
    wait_for "$started" "http://127.0.0.1:$one_port/healthz" || return 1
    ready_ms=$((($(date +%s%N) - began_ns) / 1000000))
    if [ ! -e "$here/key" ]; then
        moongate_verb "$2" upstream create --name bench --provider generic \
            --base-url "$3" --default >/dev/null || return 1
        moongate_verb "$2" key create --name bench --json |
            sed -E 's/.*"key":"([^"]+)".*/\1/' >"$here/key" || return 1
    fi
    args[$1]=$'--key\n'$(cat "$here/key")
}

# NAME [FOLDER]: starts it anew; without FOLDER in a fresh one.
start_subject() {
    local name=$1 url=http://127.0.0.1:$up
    folders=$((${folders:-0} + 1))
    here=${2:-$dir/$name.$folders}
    mkdir -p "$here"
    one_port=$(free_ports 1)
    case $name in
    direct)
        pid[direct]=0 port[direct]=$up args[direct]=
        return 0
        ;;
    nginx) start_nginx nginx nginx ;;
    nginx-lua) start_nginx nginx-lua nginx-lua ;;
    haproxy) start_haproxy ;;
    portkey) start_portkey ;;
    moongate) start_moongate moongate on.conf.lua "$url" || true ;;
    moongate-off) start_moongate moongate-off off.conf.lua "$url" || true ;;
    moongate-tls) start_moongate moongate-tls on.conf.lua "https://127.0.0.1:$up_tls" || true ;;
    esac
    pid[$name]=$started port[$name]=$one_port
    local -a words=()
    if [ -n "${args[$name]:-}" ]; then mapfile -t words <<<"${args[$name]}"; fi
    local i
    for ((i = 0; i < 50; i++)); do
        if "$build/bench/bench_load" --port "$one_port" --requests 5 --seconds 5 "${words[@]}" \
            --job kind=unary >"$here/probe" 2>&1; then
            return 0
        fi
        kill -0 "$started" 2>/dev/null || break
        sleep 0.2
    done
    missing[$name]="did not answer: $(tail -n 1 "$here/out" | cut -c 1-120)"
    say "$name ${missing[$name]}"
    tail -qn 3 "$here/out" "$here/log" "$here/probe" 2>/dev/null | cut -c 1-300 >&2 || true
    stop_subject "$name"
    return 1
}

stop_subject() {
    [ "${pid[$1]:-0}" = 0 ] || stop_pids "${pid[$1]}"
    pid[$1]=0
}

# ---- what there is ------------------------------------------------------------------------------

find_nginx() {
    nginx=$(command -v nginx || echo /usr/sbin/nginx)
    if [ ! -x "$nginx" ]; then
        missing[nginx]='not installed (.ci/deps bench)' missing[nginx-lua]='not installed (.ci/deps bench)'
        return
    fi
    version[nginx]=$("$nginx" -v 2>&1 | sed 's#.*nginx/##')
    version[nginx-lua]="${version[nginx]} with lua module $(dpkg-query -W -f '${Version}' libnginx-mod-http-lua 2>/dev/null || echo '?')"
    [ -e /usr/lib/nginx/modules/ngx_http_lua_module.so ] ||
        missing[nginx-lua]='the Lua module is not installed (.ci/deps bench)'
}

find_haproxy() {
    if command -v haproxy >/dev/null; then
        version[haproxy]=$(haproxy -v | sed -n '1s/.*version \([^ ]*\).*/\1/p')
    else
        missing[haproxy]='not installed (.ci/deps bench)'
    fi
}

# Installed under build/tools, without running any package's scripts.
find_portkey() {
    local package=$root/bench/peers/portkey/package.json
    portkey=$root/build/tools/portkey
    if ! cmp -s "$package" "$portkey/package.json" ||
        [ ! -d "$portkey/node_modules/@portkey-ai/gateway" ]; then
        mkdir -p "$portkey"
        cp "$package" "$portkey/package.json"
        say "installing Portkey under build/tools/portkey"
        timeout 180 npm install --prefix "$portkey" --omit=dev --ignore-scripts --no-audit --no-fund \
            --no-package-lock --loglevel=error >"$dir/npm.log" 2>&1 || true
    fi
    if [ -e "$portkey/node_modules/@portkey-ai/gateway/build/start-server.js" ]; then
        version[portkey]="$(sed -n 's/^ *"version": "\(.*\)".*/\1/p' \
            "$portkey/node_modules/@portkey-ai/gateway/package.json") on node $(node --version)"
    else
        rm -f "$portkey/package.json"
        missing[portkey]="npm could not install it: $(sed -n 's/^npm [eE][rR][rR][a-zA-Z!]* *//p' \
            "$dir/npm.log" | head -n 1 | cut -c 1-80)"
    fi
}
