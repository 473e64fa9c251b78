//! An MCP server over streamable HTTP, stateless, whose every tool answers with the arguments it was given.

use serde_json::{Value, json};

use crate::answer::Answer;

const TOOLS: [&str; 3] = ["echo", "search", "delete_records"];

pub(crate) fn answer(body: &[u8]) -> Answer {
    let Ok(message) = serde_json::from_slice::<Value>(body) else {
        return error(&Value::Null, -32700, "Parse error");
    };
    let Some(method) = message["method"]
        .as_str()
        .filter(|_| message["jsonrpc"] == "2.0")
    else {
        return error(&message["id"], -32600, "Invalid Request");
    };
    // A notification has no id and gets no answer.
    let Some(id) = message.get("id") else {
        return Answer::Empty(202);
    };
    let parameters = &message["params"];
    match method {
        "initialize" => result(
            id,
            json!({
                "protocolVersion": parameters["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "stand-in", "version": "1"},
            }),
        ),
        "ping" => result(id, json!({})),
        "tools/list" => result(
            id,
            json!({"tools": TOOLS.map(|name| json!({"name": name, "description": "Answers with its arguments.", "inputSchema": {"type": "object"}}))}),
        ),
        "tools/call" => match parameters["name"]
            .as_str()
            .filter(|name| TOOLS.contains(name))
        {
            Some(_) => {
                let text = parameters["arguments"].to_string();
                result(
                    id,
                    json!({"content": [{"type": "text", "text": text}], "isError": false}),
                )
            }
            None => error(id, -32602, "Unknown tool"),
        },
        _ => error(id, -32601, "Method not found"),
    }
}

fn result(id: &Value, result: Value) -> Answer {
    Answer::Document {
        status: 200,
        body: json!({"jsonrpc": "2.0", "id": id, "result": result}),
    }
}

fn error(id: &Value, code: i32, message: &str) -> Answer {
    Answer::Document {
        status: 200,
        body: json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}}),
    }
}
