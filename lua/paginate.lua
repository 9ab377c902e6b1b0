--- Lists in pages: ?page=&page_size= in, { items, total, page, page_size, total_pages } out.
local paginate = {}

local MAX_PAGE = 1000000


--- The schema of a paged list's query.
-- @param[opt] filters table name → schema of what else the query may hold
-- @return table a record
function paginate.query(filters)
  local fields = {
    page = schema.integer { default = 1, min = 1, max = MAX_PAGE, about = "page, from 1" },
    page_size = schema.integer { default = 20, min = 1, max = 100, about = "items per page" },
  }
  for name, filter in pairs(filters or {}) do
    fields[name] = filter
  end
  return schema.record { fields = fields }
end


--- The answer for one page.
-- @param result table { items, total } as the lists of gw give it
-- @param query table the checked query
-- @param convert function item → what the surface shows
-- @return table
function paginate.answer(result, query, convert)
  local items = json.array {}
  for i, item in ipairs(result.items) do
    items[i] = convert(item)
  end
  return {
    items = items,
    total = result.total,
    page = query.page,
    page_size = query.page_size,
    total_pages = math.max(1, math.ceil(result.total / query.page_size)),
  }
end


return paginate
