--- Orders the upstreams that may serve a call: native before converted, then priority, then weight
-- (drawn at random), the default first among equals. Upstreams that cool down go last but stay.
local util = require("util")

local gw

local MAX_PAGES = 10 -- of 100: how far an unknown name is looked up among inactive upstreams


-- May the caller's key use this upstream? A key without a list may use all.
local function is_allowed(ctx, upstream_id)
  local allowed = ctx.key and ctx.key.upstream_ids
  return not allowed or util.contains(allowed, upstream_id)
end


-- ---- order

-- A smaller draw comes first; the chance to be the smallest is proportional to the weight.
local function draw(weight)
  return -math.log((gw.random_u32() + 0.5) / 4294967296) / weight
end


local function goes_before(a, b)
  if a.is_usable ~= b.is_usable then
    return a.is_usable
  elseif a.is_native ~= b.is_native then
    return a.is_native
  elseif a.priority ~= b.priority then
    return a.priority > b.priority
  end
  return a.draw < b.draw
end


local function rank(view)
  return {
    id = view.id,
    is_usable = view.usable ~= false,
    is_native = view.native ~= false,
    is_default = view.is_default == true,
    priority = view.priority or 0,
    weight = view.weight or 1,
    draw = draw(view.weight or 1),
  }
end


local function is_tie(a, b)
  return a.weight == b.weight and a.priority == b.priority and a.is_usable == b.is_usable
    and a.is_native == b.is_native
end


-- The default takes the place of the first one that is its equal in all but the draw.
local function prefer_default(ranks)
  for place, candidate in ipairs(ranks) do
    if candidate.is_default then
      for earlier = 1, place - 1 do
        if is_tie(ranks[earlier], candidate) then
          table.insert(ranks, earlier, table.remove(ranks, place))
          return
        end
      end
      return
    end
  end
end


local function order(views)
  local ranks = {}
  for i, view in ipairs(views) do
    ranks[i] = rank(view)
  end
  table.sort(ranks, goes_before)
  prefer_default(ranks)
  local ids = {}
  for i, candidate in ipairs(ranks) do
    ids[i] = candidate.id
  end
  return ids
end


-- ---- X-Upstream-Name

local function find_named(views, name)
  for _, view in ipairs(views) do
    if view.name == name then
      return view
    end
  end
  return nil
end


local function names_for(ctx, views)
  local names = {}
  for _, view in ipairs(views) do
    if is_allowed(ctx, view.id) then
      names[#names + 1] = view.name
    end
  end
  table.sort(names)
  return table.concat(names, ", ")
end


-- Is there an upstream of this name that was switched off? Asks the database.
local function is_switched_off(name)
  for page = 1, MAX_PAGES do
    local result = gw.upstreams.list { page = page, page_size = 100 }
    if not result then
      return false
    elseif find_named(result.items, name) then
      return true
    elseif page * 100 >= result.total then
      return false
    end
  end
  return false
end


local function deny_absent(ctx, name, views)
  if is_switched_off(name) then
    return ctx:deny(503, "service_unavailable",
      string.format("Upstream %s is not available", name))
  end
  return ctx:deny(400, "upstream_not_found", string.format(
    "Upstream '%s' does not exist. Available upstreams: %s", name, names_for(ctx, views)))
end


local function select_named(ctx, name, candidates)
  local view = find_named(candidates, name)
  if view and is_allowed(ctx, view.id) then
    return { view.id }
  end
  local all = gw.upstreams.all()
  view = find_named(all, name)
  if not view then
    return deny_absent(ctx, name, all)
  elseif not is_allowed(ctx, view.id) then
    return ctx:deny(403, "forbidden",
      string.format("API key not authorized for upstream: %s", name))
  elseif ctx.op == "count_tokens" then
    return nil -- the core estimates
  end
  return ctx:deny(404, "model_not_found", string.format(
    "Upstream '%s' does not serve the model '%s' by this API.", name, ctx.model or ""))
end


-- ---- the hook

-- A key with a list of upstreams of which none is left.
local function has_lost_all(ctx)
  local allowed = ctx.key and ctx.key.upstream_ids
  if not allowed then
    return false
  end
  for _, view in ipairs(gw.upstreams.all()) do
    if util.contains(allowed, view.id) then
      return false
    end
  end
  return true
end


local function select_upstreams(ctx)
  if ctx.attempt > 1 then
    return nil -- the rest of the first order
  end
  local candidates = gw.upstreams.candidates(ctx)
  local name = ctx.headers["x-upstream-name"]
  if name then
    return select_named(ctx, name, candidates)
  elseif #candidates == 1 then
    return { candidates[1].id }
  elseif #candidates > 1 then
    return order(candidates)
  elseif has_lost_all(ctx) then
    ctx:deny(503, "service_unavailable", "No upstream of this API key is available")
  end
  return nil -- the core says which of the other reasons it is
end


return {
  name = "select_weighted",
  version = "1.0.0",
  api = 1,
  about = "Chooses upstreams by X-Upstream-Name, else by dialect, priority and weight.",
  needs = { upstreams = "read" },
  on_error = "deny",

  init = function(the_gw)
    gw = the_gw
  end,

  hooks = { select = select_upstreams },
}
