-- The raw rate of checks, of the sessions of `python -m scripts.seed`, in random order:
--
--   wrk -t1 -c64 -d10s -s scripts/wrk/check.lua http://127.0.0.1:8000/sesiones/self -- FILE
--   wrk -t1 -c64 -d10s -s scripts/wrk/check.lua http://127.0.0.1:8000/sesiones/verificar -- FILE
--
-- FILE is var/load/tokens where none is named. wrk counts the answers that are no success; whose
-- session a 200 is, it does not look at (throughput.py does).

local requests = {}

local threads = 0
function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(arguments)
  local name = arguments[1] or "var/load/tokens"
  local file = io.open(name) or error("no tokens in " .. name .. ": python -m scripts.seed")
  for line in file:lines() do
    local token = string.match(line, "^%d+ (ses_[%w_-]+)$") or error("a damaged line in " .. name)
    requests[#requests + 1] = wrk.format("GET", nil, {["X-Auth-Token"] = token})
  end
  file:close()
  math.randomseed(os.time() + number)
end

function request()
  return requests[math.random(#requests)]
end
