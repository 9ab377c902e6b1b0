-- luacheck: LuaJIT, 100 columns, no globals but those that the sandbox gives a plugin.
std = "luajit"
max_line_length = 100
max_comment_line_length = 100
max_cyclomatic_complexity = 25
exclude_files = { "**/node_modules/**", "build/**", "data/**" }

-- A handler is called with all that its place in the contract names, whether it reads it or not.
unused_args = false

-- What every plugin and the library see beside LuaJIT's own: core/script puts them there.
read_globals = { "schema", "money", "json", "log" }

files["lua"] = {
  read_globals = { "gw" },
}

-- The configuration runs in a state of its own with these and the pure libraries.
files["gateway.conf.lua"] = {
  read_globals = { "env", "file", "secret", "include" },
}

files["spec"] = {
  std = "luajit+busted",
  -- Specs stand in for what core/script provides.
  globals = { "schema", "money", "json", "log" },
}
