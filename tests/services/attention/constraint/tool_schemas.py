"""Parameters of tools as agents and their servers declare them, written anew in a short form.

A parameter is written `name: type` or, if it need not be given, `name?: type`. Types are the letters of `TYPES`, `x[]`
for lists, and `a|b|c` for a choice of words.
"""

from typing import Any

TYPES: dict[str, Any] = {
    "s": {"type": "string"},
    "i": {"type": "integer"},
    "n": {"type": "number"},
    "b": {"type": "boolean"},
    "o": {"type": "object"},
    "s?": {"type": ["string", "null"]},
    "i?": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "date-time"},
    "uri": {"type": "string", "format": "uri"},
    "uuid": {"type": "string", "format": "uuid"},
    "mail": {"type": "string", "format": "email"},
    "page": {"type": "integer", "minimum": 1, "maximum": 100, "default": 1},
    "share": {"type": "number", "minimum": 0, "maximum": 1},
    "positive": {"type": "integer", "exclusiveMinimum": 0},
    "sha": {"type": "string", "pattern": "^[0-9a-f]{7,40}$"},
    "slug": {"type": "string", "pattern": "^[a-z0-9]+(-[a-z0-9]+)*$", "maxLength": 40},
    "path": {"type": "string", "minLength": 1, "maxLength": 4096, "description": "An absolute path."},
    "name": {"type": "string", "minLength": 1, "maxLength": 80},
}

# One tool a line: files, version control, forges, chats, browsers, agents, homes, memory, data, shops, planning.
TOOLS = """
read_file path: path, head?: i, tail?: i
read_media_file path: path
read_multiple_files paths: s[]
write_file path: path, content: s
edit_file path: path, edits: edit[], dryRun?: b
create_directory path: path
list_directory path: path
list_directory_with_sizes path: path, sortBy?: name|size
directory_tree path: path, excludePatterns?: s[]
move_file source: path, destination: path
search_files path: path, pattern: s, excludePatterns?: s[]
get_file_info path: path
list_allowed_directories
git_status repo_path: s
git_diff_unstaged repo_path: s, context_lines?: i
git_diff repo_path: s, target: s, context_lines?: i
git_commit repo_path: s, message: s
git_add repo_path: s, files: s[]
git_reset repo_path: s
git_log repo_path: s, max_count?: page, start_timestamp?: s?, end_timestamp?: s?
git_create_branch repo_path: s, branch_name: slug, base_branch?: s?
git_checkout repo_path: s, branch_name: slug
git_show repo_path: s, revision: sha
git_branch repo_path: s, branch_type: local|remote|all, contains?: s?, not_contains?: s?
create_or_update_file owner: s, repo: s, path: s, content: s, message: s, branch: s, sha?: sha
push_files owner: s, repo: s, branch: s, files: file[], message: s
search_repositories query: s, page?: page, perPage?: page
create_repository name: name, description?: s, private?: b, autoInit?: b
get_file_contents owner: s, repo: s, path: s, branch?: s
create_issue owner: s, repo: s, title: name, body?: s, assignees?: s[], labels?: s[], milestone?: i
list_issues owner: s, repo: s, state?: open|closed|all, sort?: created|updated|comments, since?: time, labels?: s[]
update_issue owner: s, repo: s, issue_number: positive, title?: s, state?: open|closed
add_issue_comment owner: s, repo: s, issue_number: positive, body: s
create_pull_request owner: s, repo: s, title: s, head: s, base: s, draft?: b, maintainer_can_modify?: b
create_pull_request_review owner: s, repo: s, pull: i, event: APPROVE|REQUEST_CHANGES|COMMENT, comments?: remark[]
merge_pull_request owner: s, repo: s, pull_number: i, merge_method?: merge|squash|rebase
search_code q: s, order?: asc|desc, page?: page, per_page?: page
fork_repository owner: s, repo: s, organization?: s
list_commits owner: s, repo: s, sha?: sha, page?: page
slack_list_channels limit?: page, cursor?: s
slack_post_message channel_id: s, text: s
slack_reply_to_thread channel_id: s, thread_ts: stamp, text: s
slack_add_reaction channel_id: s, timestamp: stamp, reaction: s
slack_get_users cursor?: s, limit?: page
browser_navigate url: uri
browser_click element: s, ref: s, doubleClick?: b, button?: left|right|middle, modifiers?: key[]
browser_type element: s, ref: s, text: s, submit?: b, slowly?: b
browser_select_option element: s, ref: s, values: s[]
browser_fill_form fields: input[]
browser_take_screenshot type?: png|jpeg, filename?: s, fullPage?: b
browser_wait_for time?: n, text?: s, textGone?: s
browser_resize width: n, height: n
browser_handle_dialog accept: b, promptText?: s
browser_evaluate function: s, element?: s, ref?: s
browser_tabs action: list|new|close|select, index?: n
browser_mouse_drag startX: n, startY: n, endX: n, endY: n
Bash command: s, timeout?: n, description?: s, run_in_background?: b
Glob pattern: s, path?: s
Grep pattern: s, path?: s, output_mode?: content|files_with_matches|count, -A?: n, -B?: n, -C?: n, -n?: b, -i?: b
Read file_path: path, offset?: positive, limit?: positive
Edit file_path: path, old_string: s, new_string: s, replace_all?: b
MultiEdit file_path: path, edits: edit[]
Write file_path: path, content: s
NotebookEdit notebook_path: path, new_source: s, cell_type?: code|markdown, edit_mode?: replace|insert|delete
WebFetch url: uri, prompt: s
WebSearch query: query, allowed_domains?: s[], blocked_domains?: s[]
TodoWrite todos: todo[]
Task description: s, prompt: s, subagent_type: s
ExitPlanMode plan: s
AskUserQuestion questions: question[]
HassTurnOn name?: s, area?: s, floor?: s, domain?: s[], device_class?: s[]
HassLightSet name?: s, area?: s, brightness?: percent, color?: s, temperature?: i
HassClimateSetTemperature temperature: n, area?: s, name?: s
HassSetPosition name?: s, position: percent
HassSetVolume volume_level: percent, area?: s
HassListAddItem item: s, name: s
HassStartTimer hours?: i, minutes?: i, seconds?: i, name?: s
HassMediaSearchAndPlay search_query: s, media_class?: artist|album|track|playlist
create_entities entities: entity[]
create_relations relations: relation[]
add_observations observations: observation[]
delete_entities entityNames: s[]
search_nodes query: s
fetch url: uri, max_length?: positive, start_index?: i, raw?: b
get_current_time timezone: s
convert_time source_timezone: s, time: clock, target_timezone: s
sql_query sql: s
sequentialthinking thought: s, nextThoughtNeeded: b, thoughtNumber: page, totalThoughts: page, isRevision?: b
get_weather location: s, unit?: celsius|fahrenheit, days?: page
get_stock_price ticker: ticker, exchange?: NYSE|NASDAQ|LSE
book_flight from: airport, to: airport, date: date, passengers: person[], cabin?: economy|business|first
cancel_order order_id: uuid, reason?: s
send_email to: mail[], cc?: mail[], subject: name, body: s, attachments?: uri[]
create_event title: s, start: time, end: time, attendees?: mail[], recurrence?: daily|weekly|monthly, reminders?: i[]
translate text: s, source?: language, target: language
calculate expression: s, precision?: i
transfer_money from_account: iban, to_account: iban, amount: money, currency: EUR|USD|CHF|CNY
set_sampling temperature: share, top_p?: share, seed?: i?
查询天气 城市: s, 日期?: date, 单位?: 摄氏|华氏
""".strip().splitlines()

PARTS: dict[str, Any] = {
    "edit": "oldText: s, newText: s",
    "file": "path: s, content: s",
    "remark": "path: s, position: positive, body: s",
    "input": "name: s, type: textbox|checkbox|radio|combobox|slider, ref: s, value: s",
    "todo": "content: name, status: pending|in_progress|completed, activeForm: name",
    "question": "question: s, header: s, options: option[], multiSelect: b",
    "option": "label: s, description: s",
    "entity": "name: s, entityType: s, observations: s[]",
    "relation": "from: s, to: s, relationType: s",
    "observation": "entityName: s, contents: s[]",
    "person": "first_name: s, last_name: s, dob: date",
}
OTHERS: dict[str, Any] = {
    "stamp": {"type": "string", "pattern": "^\\d{10}\\.\\d{6}$"},
    "key": {"type": "string", "enum": ["Alt", "Control", "ControlOrMeta", "Meta", "Shift"]},
    "query": {"type": "string", "minLength": 2},
    "percent": {"type": "integer", "minimum": 0, "maximum": 100},
    "clock": {"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"},
    "ticker": {"type": "string", "pattern": "^[A-Z]{1,5}$"},
    "airport": {"type": "string", "pattern": "^[A-Z]{3}$", "minLength": 3, "maxLength": 3},
    "language": {"type": "string", "enum": ["de", "en", "es", "fr", "it", "ja", "zh"]},
    "iban": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{2}[A-Z0-9]{4,30}$"},
    "money": {"type": "number", "exclusiveMinimum": 0, "multipleOf": 0.01},
}


def schema_of(parameters: str, *, is_closed: bool) -> dict[str, Any]:
    """The schema of parameters in the short form."""
    properties: dict[str, Any] = {}
    required = []
    for parameter in filter(None, parameters.split(", ")):
        name, kind = parameter.split(": ")
        properties[name.removesuffix("?")] = _type_of(kind, is_closed=is_closed)
        required += [] if name.endswith("?") else [name]
    schema = {"type": "object", "properties": properties, "required": required}
    return {**schema, "additionalProperties": False} if is_closed else schema


def _type_of(kind: str, *, is_closed: bool) -> dict[str, Any]:
    if kind.endswith("[]"):
        return {"type": "array", "items": _type_of(kind[:-2], is_closed=is_closed)}
    if kind in PARTS:
        return schema_of(PARTS[kind], is_closed=is_closed)
    known = TYPES.get(kind) or OTHERS.get(kind)
    return dict(known) if known else {"type": "string", "enum": kind.split("|")}


def tool_schemas() -> dict[str, dict[str, Any]]:
    """The parameters of all tools by name, closed for every second one, as half of the servers do it."""
    split = [line.partition(" ") for line in TOOLS]
    return {name: schema_of(rest, is_closed=index % 2 == 0) for index, (name, _, rest) in enumerate(split)}
