-- Makes undeclared globals errors, as they are in a plugin's sandbox: tests that run a plugin in a
-- plain Lua interpreter call strict.environment() for the environment they load it into.

local strict = {}


--- Makes reading and writing of undeclared names in a table an error.
-- @param target table the environment
-- @return table the same table
function strict.protect(target)
  return setmetatable(target, {
    __index = function(_, name)
      error("undeclared global '" .. tostring(name) .. "'", 2)
    end,
    __newindex = function(_, name)
      error("assignment to undeclared global '" .. tostring(name) .. "'", 2)
    end,
    __metatable = false,
  })
end


--- Gives a strict copy of an environment with further names in it.
-- @param base table what the copy starts from, normally _G
-- @param extra table names to add, may be nil
-- @return table
function strict.environment(base, extra)
  local environment = {}
  for name, value in pairs(base) do
    environment[name] = value
  end
  for name, value in pairs(extra or {}) do
    environment[name] = value
  end
  environment._G = environment
  return strict.protect(environment)
end


return strict
