"""POST /v1/chat/completions through the official SDK."""

HELLO_CONTENT = "Hello, wörld! 👋"


async def test_whole(site):
    answer = await site.openai.chat.completions.create(model="kimi-k2.6", messages=[{"role": "user", "content": "Hi"}])
    message = answer.choices[0].message
    assert message.content == HELLO_CONTENT
    assert message.reasoning_content == message.reasoning == "Let me see."
    assert answer.choices[0].finish_reason == "stop"


async def test_streamed(site):
    stream = await site.openai.chat.completions.create(
        model="kimi-k2.6", messages=[{"role": "user", "content": "Hi"}], stream=True
    )
    chunks = [chunk async for chunk in stream]
    print(chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == HELLO_CONTENT
