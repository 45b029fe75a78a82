-- For wrk: every request places an order that nobody placed before, cyclically for a thousand users.
local threads, placed = 0, 0

function setup(thread)
  thread:set("id", threads)
  threads = threads + 1
end

function init(args)
  prefix = args[1]
  headers = { ["Content-Type"] = "application/json" }
end

function request()
  placed = placed + 1
  local body = string.format('{"order_id": "%s-%d-%d", "user_id": "%d", "total_price": 19.99}',
    prefix, id, placed, placed % 1000)
  return wrk.format("POST", "/api/create_order", headers, body)
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'JSON {"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "refused": %d, "broken": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
