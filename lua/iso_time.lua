--- ISO 8601 times as milliseconds since 1970 (UTC).
local iso_time = {}

local DAY_MS = 86400000
local MONTH_DAYS = { 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 }


local function days_in(year, month)
  local is_leap = year % 4 == 0 and (year % 100 ~= 0 or year % 400 == 0)
  return month == 2 and is_leap and 29 or MONTH_DAYS[month]
end


-- Days from 1970-01-01 (civil calendar, years counted from March).
local function days_since_epoch(year, month, day)
  local shifted = month <= 2 and year - 1 or year
  local era = math.floor(shifted / 400)
  local year_of_era = shifted - era * 400
  local day_of_year = math.floor((153 * ((month + 9) % 12) + 2) / 5) + day - 1
  local day_of_era = year_of_era * 365 + math.floor(year_of_era / 4)
    - math.floor(year_of_era / 100) + day_of_year
  return era * 146097 + day_of_era - 719468
end


local function parse_date(text)
  local year, month, day = text:match("^(%d%d%d%d)%-(%d%d)%-(%d%d)$")
  year, month, day = tonumber(year), tonumber(month), tonumber(day)
  if not year or month < 1 or month > 12 or day < 1 or day > days_in(year, month) then
    return nil
  end
  return days_since_epoch(year, month, day) * DAY_MS
end


-- Milliseconds of "10:20", "10:20:30", "10:20:30.5".
local function parse_clock(text)
  local hour, minute, rest = text:match("^(%d%d):(%d%d)(.*)$")
  hour, minute = tonumber(hour), tonumber(minute)
  if not hour or hour > 23 or minute > 59 then
    return nil
  end
  local ms = (hour * 60 + minute) * 60000
  if rest == "" then
    return ms
  end
  local second, fraction = rest:match("^:(%d%d)%.?(%d*)$")
  if not second or tonumber(second) > 59 or (rest:find(".", 1, true) and fraction == "") then
    return nil
  end
  return ms + tonumber(second) * 1000 + math.floor(tonumber("0." .. fraction .. "0") * 1000 + 1e-6)
end


-- Milliseconds to take off for "Z", "+02:00", "+0200"; a plus that became a blank in a query too.
local function parse_zone(text)
  if text == "" or text == "Z" or text == "z" then
    return 0
  end
  local sign, hour, minute = text:match("^([+ -])(%d%d):?(%d%d)$")
  if not sign or tonumber(hour) > 23 or tonumber(minute) > 59 then
    return nil
  end
  local ms = (tonumber(hour) * 60 + tonumber(minute)) * 60000
  return sign == "-" and -ms or ms
end


--- Reads a time; without a zone it is UTC, a date alone is its midnight.
-- @param text string "2026-11-20T19:30:00Z"
-- @return number milliseconds since 1970, or nil
function iso_time.parse(text)
  if type(text) ~= "string" or #text > 40 then
    return nil
  end
  local date = parse_date(text:sub(1, 10))
  if not date or #text == 10 then
    return date
  end
  local clock, zone = text:match("^[Tt ](%d%d:%d%d[%d:.]*)(.*)$", 11)
  local time, offset = clock and parse_clock(clock), zone and parse_zone(zone)
  if not time or not offset then
    return nil
  end
  return date + time - offset
end


--- Writes a time in UTC with milliseconds.
-- @param ms number milliseconds since 1970
-- @return string "2026-11-20T19:30:00.000Z"
function iso_time.format(ms)
  return string.format("%s.%03dZ", os.date("!%Y-%m-%dT%H:%M:%S", math.floor(ms / 1000)), ms % 1000)
end


return iso_time
