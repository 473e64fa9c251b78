package tollgate

import rego.v1

default allow := false

allow if count(deny) == 0

deny contains "hosts" if {
	not input.host in {"api.openai.com", "api.anthropic.com"}
	not endswith(input.host, ".slack.com")
}

deny contains "models" if {
	not startswith(input.model, "gpt-4o")
	input.model != "gpt-5-mini"
}

deny contains "models" if startswith(input.model, "gpt-4o-audio")

deny contains "tools" if {
	some tool in input.tools
	tool in {"execute_shell", "bash"}
}

deny contains "org-hosts" if {
	input.org == "acme"
	not input.host in {"api.openai.com", "hooks.slack.com"}
	not endswith(input.host, ".openai.com")
}

deny contains "org-tools" if {
	input.org == "acme"
	"delete_repo" in input.tools
}

deny contains "team-models" if {
	input.team == "platform"
	input.model
	not input.model in {"gpt-4o", "gpt-4o-mini"}
}

deny contains "team-mcp" if {
	input.team == "platform"
	input.mcp_tool != "git"
}

deny contains "team-tools" if {
	input.team == "platform"
	"mail" in input.tools
}

deny contains "search" if {
	"search" in input.tools
	input.host != "api.openai.com"
}

# Rules of single agents are data, found by the agent's name: Rego's way to have many.
deny contains "agent" if input.model in data.agents[input.agent]
