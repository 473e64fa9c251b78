"""The vendors' own SDKs, through the real gate, in front of the stand-in provider.

An agent changes two things: the base URL, and the API key, which is its token. Everything else is what the vendor's documentation says.
Started by `cargo xtask test --only sdk` with the demo policy. The stand-in counts one token per word: "three words here" are 3, its reply
"The gate let this call through to me." is 8.
"""

import os
import unittest

import anthropic
import openai

GATE = os.environ["TOLLGATE_GATE"]
TOKEN = os.environ["TOLLGATE_TOKEN"]
# Of an agent of its own, since it spends its whole budget.
SPENDER_TOKEN = os.environ["TOLLGATE_SPENDER_TOKEN"]

REPLY = "The gate let this call through to me."
PROMPT = [{"role": "user", "content": "three words here"}]
# Put together here, so that no scanner takes this file for a leak.
SECRET = "sk-" + "not" + "a" * 24 + "key"


def openai_client(token: str = TOKEN, **options) -> openai.OpenAI:
    # No retries: an answer that only holds the second time is a fault.
    return openai.OpenAI(api_key=token, base_url=f"{GATE}/v1", max_retries=0, **options)


def anthropic_client(token: str = TOKEN, **options) -> anthropic.Anthropic:
    return anthropic.Anthropic(api_key=token, base_url=GATE, max_retries=0, **options)


class OpenAI(unittest.TestCase):
    model = "gpt-5-mini"

    def test_a_completion_comes_back_whole(self):
        completion = openai_client().chat.completions.create(model=self.model, messages=PROMPT)
        self.assertEqual(completion.choices[0].message.content, REPLY)
        self.assertEqual((completion.usage.prompt_tokens, completion.usage.completion_tokens), (3, 8))

    def test_a_stream_shows_no_usage_that_was_not_asked_for(self):
        chunks = list(openai_client().chat.completions.create(model=self.model, messages=PROMPT, stream=True))
        self.assertEqual("".join(chunk.choices[0].delta.content or "" for chunk in chunks), REPLY)
        self.assertEqual([chunk for chunk in chunks if chunk.usage], [])

    def test_a_stream_shows_the_usage_that_was_asked_for(self):
        stream = openai_client().chat.completions.create(
            model=self.model, messages=PROMPT, stream=True, stream_options={"include_usage": True}
        )
        *others, last = list(stream)
        self.assertEqual("".join(chunk.choices[0].delta.content or "" for chunk in others), REPLY)
        self.assertEqual((last.choices, last.usage.total_tokens), ([], 11))

    def test_a_model_that_is_not_allowed_is_denied_with_a_reason(self):
        with self.assertRaises(openai.PermissionDeniedError) as denied:
            openai_client().chat.completions.create(model="gpt-5-pro", messages=PROMPT)
        self.assertIn("gpt-5-pro", denied.exception.body["message"])
        self.assertTrue(denied.exception.response.headers["x-tollgate-decision"])
        self.assertTrue(denied.exception.response.headers["x-tollgate-reason"])

    def test_a_secret_in_a_prompt_does_not_leave_and_is_not_repeated(self):
        with self.assertRaises(openai.PermissionDeniedError) as denied:
            openai_client().chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": f"my key is {SECRET}"}], stream=True
            )
        self.assertNotIn(SECRET, denied.exception.response.text + str(denied.exception.response.headers))

    def test_whoever_has_no_token_is_turned_away(self):
        for token in ["sk-test-not-a-token", TOKEN[:-4] + "AAAA"]:
            with self.assertRaises(openai.AuthenticationError) as denied:
                openai_client(token).chat.completions.create(model=self.model, messages=PROMPT)
            self.assertNotIn(token, denied.exception.response.text)


class Anthropic(unittest.TestCase):
    model = "claude-haiku-4-5"

    def test_a_message_comes_back_whole(self):
        message = anthropic_client().messages.create(model=self.model, max_tokens=64, messages=PROMPT)
        self.assertEqual(message.content[0].text, REPLY)
        self.assertEqual((message.usage.input_tokens, message.usage.output_tokens), (3, 8))

    def test_a_stream_comes_back_whole(self):
        with anthropic_client().messages.stream(model=self.model, max_tokens=64, messages=PROMPT) as stream:
            self.assertEqual("".join(stream.text_stream), REPLY)
            self.assertEqual(stream.get_final_message().usage.output_tokens, 8)

    def test_the_token_may_come_in_either_header(self):
        client = anthropic_client("", default_headers={"x-api-key": TOKEN, "authorization": anthropic.Omit()})
        self.assertEqual(client.messages.create(model=self.model, max_tokens=64, messages=PROMPT).content[0].text, REPLY)

    def test_a_model_that_is_not_allowed_is_denied_with_a_reason(self):
        with self.assertRaises(anthropic.PermissionDeniedError) as denied:
            anthropic_client().messages.create(model="claude-opus-4-5", max_tokens=64, messages=PROMPT)
        self.assertEqual(denied.exception.body["type"], "error")
        self.assertIn("claude-opus-4-5", denied.exception.body["error"]["message"])

    def test_a_secret_in_a_prompt_does_not_leave(self):
        with self.assertRaises(anthropic.PermissionDeniedError):
            anthropic_client().messages.create(
                model=self.model, max_tokens=64, system=f"use {SECRET}", messages=PROMPT
            )

    def test_whoever_has_no_token_is_turned_away(self):
        with self.assertRaises(anthropic.AuthenticationError):
            anthropic_client("sk-test-not-a-token").messages.create(model=self.model, max_tokens=64, messages=PROMPT)


class Budget(unittest.TestCase):
    def test_a_budget_runs_out_and_says_so(self):
        # 0.30 USD a day; gpt-5-mini puts out a million tokens for 2 USD, so 40,000 tokens cost 0.08 and the prompt a little more:
        # three calls come through, a fourth does not fit.
        client = openai_client(SPENDER_TOKEN, default_headers={"x-stand-in-completion-tokens": "40000"})
        passed = 0
        with self.assertRaises(openai.RateLimitError) as denied:
            for _ in range(6):
                client.chat.completions.create(
                    model="gpt-5-mini", max_completion_tokens=40000, messages=[{"role": "user", "content": "go"}]
                )
                passed += 1
        self.assertEqual(passed, 3)
        self.assertIn("budget", denied.exception.body["message"])
        # The SDK would otherwise wait and try again, against a limit that resets at midnight.
        self.assertEqual(denied.exception.response.headers["x-should-retry"], "false")


if __name__ == "__main__":
    unittest.main()
