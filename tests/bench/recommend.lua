-- wrk: every request another body; users Zipf(1.0) from ARG1, a share ARG2 of them never seen before.
local users, new_share, surface = 100000, 0.05, "home"
local cumulative, counter = {}, 0

function init(args)
  users = tonumber(args[1]) or users
  new_share = tonumber(args[2]) or new_share
  surface = args[3] or surface
  math.randomseed(tonumber(args[4]) or 1)
  counter = math.random(1, 1000000000)
  local sum = 0
  for rank = 1, users do
    sum = sum + 1 / rank
    cumulative[rank] = sum
  end
end

local function zipf()
  local wanted, low, high = math.random() * cumulative[users], 1, users
  while low < high do
    local middle = math.floor((low + high) / 2)
    if cumulative[middle] < wanted then low = middle + 1 else high = middle end
  end
  return low
end

function request()
  counter = counter + 1
  local user
  if math.random() < new_share then user = "new-" .. counter else user = "u" .. zipf() end
  local body = string.format('{"surface":"%s","user_id":"%s","k":10,"context":{"n":%d}}', surface, user, counter)
  return wrk.format("POST", "/v1/recommend", {["Content-Type"] = "application/json"}, body)
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"seconds":%.3f,"p50_ms":%.3f,"p99_ms":%.3f,"errors":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
