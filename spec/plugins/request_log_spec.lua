local testing = require("testing")

local DAY_MS = 86400000


describe("request_log", function()
  local plugin, gw, pruned, answer, failure

  before_each(function()
    plugin = testing.load("request_log")
    pruned, answer, failure = {}, { deleted = 12 }, nil
    gw = testing.gw {
      conf = { log_retention_days = 90 },
      logs = {
        prune = function(query)
          pruned[#pruned + 1] = query
          return answer, failure
        end,
      },
    }
  end)

  it("runs once a day on one node", function()
    local task = plugin.tasks[1]
    assert.equal("02:00", task.daily)
    assert.equal("cluster", task.on)
  end)

  it("deletes what is older than the retention and says how much", function()
    plugin.tasks[1].run(gw, testing.config(plugin, {}))
    assert.same({ { before_ms = gw.now_ms() - 90 * DAY_MS } }, pruned)
    assert.equal("Cleaned up 12 old request logs", gw.logged[1].event)
    assert.equal("info", gw.logged[1].level)
  end)

  it("takes its own retention first", function()
    plugin.tasks[1].run(gw, testing.config(plugin, { retention_days = 7 }))
    assert.equal(gw.now_ms() - 7 * DAY_MS, pruned[1].before_ms)
  end)

  it("logs a failure and does not claim success", function()
    answer, failure = nil, { code = "busy", message = "the database is busy" }
    plugin.tasks[1].run(gw, testing.config(plugin, {}))
    assert.equal(1, #gw.logged)
    assert.equal("error", gw.logged[1].level)
    assert.equal("busy", gw.logged[1].fields.code)
  end)

  it("refuses a retention that would delete everything", function()
    assert.is_nil((testing.config(plugin, { retention_days = 0 })))
    assert.is_nil((testing.config(plugin, { days = 7 })))
  end)
end)
