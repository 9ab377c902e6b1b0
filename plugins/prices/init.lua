--- What calls cost: the price table and its routes. Prices are USD per million tokens (per_call:
-- USD per call) and stay exact from the request's text to the ledger.
local detail_error = require("detail_error")
local row_view = require("row_view")

local gw

local PARTS = {
  "input", "output", "cache_read", "cache_write_5m", "cache_write_1h", "reasoning", "audio_in",
  "audio_out", "image_in", "per_call",
}


local function price_call(ctx, cost)
  return gw.prices.cost(ctx) or cost
end


local function show(row)
  local shown = { model = row.model, max_output = row_view.or_null(row.max_output) }
  for _, part in ipairs(PARTS) do
    local nano = row_view.or_nil(row[part .. "_nano"])
    shown[part] = nano and tostring(money.nano(nano)) or json.null
  end
  shown.source = row_view.or_null(row.source)
  shown.version = row.version
  shown.valid_from = row_view.time(row.valid_from_ms)
  return shown
end


local function list_prices()
  local result, err = gw.prices.list {}
  if not result then
    return detail_error.of_service(err)
  end
  local prices = json.array {}
  for i, row in ipairs(result.items) do
    prices[i] = show(row)
  end
  return 200, { prices = prices }
end


local function put_price(req)
  local price = row_view.without_nulls(req.body)
  price.model = req.params.model
  local row, err = gw.prices.put(price)
  if not row then
    return detail_error.of_service(err)
  end
  return 200, show(row)
end


local function delete_price(req)
  local done, err = gw.prices.delete(req.params.model)
  if not done then
    return detail_error.of_service(err, "No price for model: " .. req.params.model)
  end
  return 204
end


-- input and output are needed, or per_call; the price table says so.
local function new_price()
  local fields = {
    max_output = schema.null_or(schema.integer { optional = true, min = 1, max = 1000000000,
      about = "most output tokens the model gives" }),
    source = schema.null_or(schema.text { optional = true, max = 1024,
      about = "where the price was read, with the date" }),
  }
  for _, part in ipairs(PARTS) do
    fields[part] = schema.null_or(schema.decimal { optional = true, min = 0,
      about = part == "per_call" and "USD per call" or "USD per million tokens" })
  end
  return schema.record { fields = fields }
end


local MODEL = { model = schema.text { min = 1, max = 256,
  about = "name, percent-encoded as one segment; * matches any text" } }

return {
  name = "prices",
  version = "1.0.0",
  api = 1,
  about = "Prices calls by the price table and keeps that table at /admin/prices.",
  needs = { prices = "write" },
  render_error = detail_error.render,

  init = function(the_gw)
    gw = the_gw
  end,

  hooks = { price = price_call },

  routes = {
    { "GET", "/admin/prices", list_prices, auth = "admin", about = "All prices in force." },
    { "PUT", "/admin/prices/{model}", put_price, auth = "admin", params = MODEL,
      body = new_price(), about = "Sets a model's price; earlier calls keep theirs." },
    { "DELETE", "/admin/prices/{model}", delete_price, auth = "admin", params = MODEL,
      about = "Takes a model's price away.",
      responses = { [204] = "Taken away.", [404] = "The model has no price." } },
  },
}
