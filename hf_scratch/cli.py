"""The command `hf-scratch`: publish, verify, export and import a model, and talk to it.

    hf-scratch publish runs/quickstart --repo-id user/name --space user/name-demo
    hf-scratch chat user/name

Nothing heavy is imported before a command is known, so help comes at once.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_scratch.hub.leaks import SECRET

# transformers imports torchao where it is installed, which then tells of kernels for other processors.
QUIET = ("torchao", "torch.utils._pytree")
MAIN = """\
First:  hf-scratch publish runs/quickstart --repo-id USER/NAME --dry-run
Token:  `hf auth login`, or the environment variable HF_TOKEN.
Help:   hf-scratch COMMAND --help"""
PUBLISH = """\
RUN is the folder that `python -m training.run` made. The release in it is verified in a process that cannot import
this package, pushed in one commit, downloaded again and verified again. Interrupted, the same command goes on.

Next:   hf-scratch chat USER/NAME"""
PUBLISH_DATA = """\
RUN is the folder of a run, or of its data. Shards, tokenizer, report and card replace what the branch held, in one
commit. Texts of documents that were dropped are not sent.

Next:   python -m training.pretrain --data hf://datasets/USER/NAME ..."""
VERIFY = """\
Checks files, loads the model in a clean process, without network where the system can cut it off, and compares
weights, logits and a greedy answer with those of training where the repository has them. Exit status 0: every check
passed; code that is not this package's own is run with --trust-remote-code only, and what was not run has not passed.

Next:   hf-scratch publish RUN --repo-id USER/NAME"""
EXPORT = """\
MODEL is a folder, such as RUN/release/model, or a Hub id. The result lies in MODEL/FORMAT, is compared with the
original, and is listed on the card; `publish` takes it along. Needs `pip install 'hf_scratch[export]'`.

Next:   hf-scratch publish RUN --repo-id USER/NAME"""
IMPORT = """\
MODEL is a Qwen3 dense checkpoint, a folder or a Hub id. OUTPUT becomes a Scratch checkpoint with equal logits.

Next:   python -m training.sft --model OUTPUT ..."""
BROWSER = """\
RUN is the folder that `python -m training.run` made. The page is what `publish --space` makes a static Space of: the
model as GGUF, compared with transformers, and llama.cpp as WebAssembly, which is fetched from npm once. Needs
`pip install 'hf_scratch[browser]'`.

Next:   hf-scratch publish RUN --repo-id USER/NAME --space USER/NAME-demo"""
CHAT = """\
In the chat: /reset begins anew, /save FILE writes the conversation as JSON, /system TEXT sets the system prompt and
begins anew, /exit ends. In a pipe nothing is a command: each line of the input is a message, whatever it begins with,
and only the answers are printed.

An API like OpenAI's, after `hf-scratch export MODEL --to transformers`:
        transformers serve MODEL/transformers           # pip install 'transformers[serving]'
        vllm serve MODEL/transformers"""
GENERATE = """\
Continues PROMPT, or what stands in the input, as plain text; for a conversation use chat.

Next:   hf-scratch chat MODEL"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake is one sentence on stderr and exit status 1."""
    args = make_parser().parse_args(argv)
    logging.basicConfig(format="%(message)s")
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        sys.exit(args.run(args))
    except (ValueError, OSError, ImportError) as error:
        if sys.flags.dev_mode:
            raise
        sys.exit(f"hf-scratch {args.command}: {SECRET.sub('(hidden)', str(error))}")
    except KeyboardInterrupt:
        sys.exit("stopped.")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser, whose help fits a screen."""
    parser = argparse.ArgumentParser(
        prog="hf-scratch",
        description="Publish, verify, export and use a model.",
        epilog=MAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_publish(new_command(commands, "publish", "push a verified release and its Space to the Hub", PUBLISH))
    add_publish_data(new_command(commands, "publish-data", "push token shards to the Hub as a data set", PUBLISH_DATA))
    add_verify(new_command(commands, "verify", "check a folder or a repository of the Hub", VERIFY))
    add_export(new_command(commands, "export", "write the weights for other programs", EXPORT))
    add_import(new_command(commands, "import", "make a Scratch checkpoint of a Qwen3 one", IMPORT))
    add_browser(new_command(commands, "browser", "open the page that runs a model in the browser", BROWSER))
    add_chat(new_command(commands, "chat", "talk to a model", CHAT))
    add_generate(new_command(commands, "generate", "let a model continue a text", GENERATE))
    return parser


def new_command(commands: "argparse._SubParsersAction", name: str, what: str, more: str) -> argparse.ArgumentParser:
    """Add a command whose help says what it does, its options and what comes next."""
    return commands.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Describe which model, of those that are on this machine or on the Hub."""
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id")
    parser.add_argument("--revision", default="main", help="commit, tag or branch of a Hub id (main)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that came with the model")


# ---- publish and verify ----


def add_publish(parser: argparse.ArgumentParser) -> None:
    """Describe `publish`."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--repo-id", required=True, metavar="ID", help="USER/NAME of the model")
    parser.add_argument("--space", metavar="ID", help="USER/NAME of a demo Space to make or update")
    parser.add_argument(
        "--space-kind", choices=("static", "gradio"), help="static: in the visitor's browser (if the model is small)"
    )
    parser.add_argument("--space-hardware", metavar="NAME", help="of a gradio one: zero-a10g (ZeroGPU), t4-small, ...")
    parser.add_argument(
        "--space-secret", action="append", default=[], metavar="VAR", help="environment variable to give to the Space"
    )
    parser.add_argument("--private", action="store_true", default=None, help="make new repositories private")
    parser.add_argument("--revision", default="main", metavar="BRANCH", help="branch to push to (main)")
    parser.add_argument(
        "--stages", default="", metavar="A,B", help="also base,sft,dpo as branches; as repositories with {stage} in ID"
    )
    parser.add_argument("--dry-run", action="store_true", help="verify and list the files, send nothing")
    parser.set_defaults(run=run_publish)


def run_publish(args: argparse.Namespace) -> None:
    """Publish a release."""
    from hf_scratch.hub.publish import Plan, Space, publish

    space = None
    if args.space:
        from hf_scratch.export.browser import build_page

        space = Space(
            repo_id=args.space, kind=args.space_kind, page=build_page, hardware=args.space_hardware,
            secrets=args.space_secret,
        )  # fmt: skip
    elif args.space_kind or args.space_hardware or args.space_secret:
        raise ValueError("--space-kind, --space-hardware and --space-secret need --space USER/NAME.")
    plan = Plan(
        repo_id=args.repo_id,
        space=space,
        private=args.private,
        branch=args.revision,
        stages=[stage for stage in args.stages.split(",") if stage],
    )
    publish(args.folder, plan, print, dry_run=args.dry_run)


def add_publish_data(parser: argparse.ArgumentParser) -> None:
    """Describe `publish-data`."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of the run, or of its data")
    parser.add_argument("--repo-id", required=True, metavar="ID", help="USER/NAME of the data set")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", default="main", metavar="BRANCH", help="branch to push to (main)")
    parser.add_argument("--dry-run", action="store_true", help="list the files, send nothing")
    parser.set_defaults(run=run_publish_data)


def run_publish_data(args: argparse.Namespace) -> None:
    """Publish the shards of a run."""
    from hf_scratch.hub.client import Target
    from hf_scratch.hub.publish_data import publish_data

    target = Target(args.repo_id, "dataset", args.revision)
    publish_data(args.folder, target, args.private, print, dry_run=args.dry_run)


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Describe `verify`."""
    add_model(parser)
    parser.set_defaults(run=run_verify)


def run_verify(args: argparse.Namespace) -> int:
    """Print the checks of a model; return 1 if one failed."""
    from hf_scratch.hub.verify import verify_anywhere

    checks = verify_anywhere(args.model, args.revision, args.trust_remote_code)
    for check in checks:
        print(f"{'ok    ' if check.passed else 'FAILED'}  {check.name}{f': {check.detail}' if check.detail else ''}")
    failed = sum(not check.passed for check in checks)
    print(f"{failed} of {len(checks)} checks failed." if failed else f"All {len(checks)} checks passed.")
    return int(failed > 0)


# ---- other formats ----


def add_export(parser: argparse.ArgumentParser) -> None:
    """Describe `export`."""
    from hf_scratch.hub.exports import FORMATS

    parser.add_argument("model", metavar="MODEL", help="folder or Hub id")
    parser.add_argument("--to", required=True, choices=FORMATS, help="stock qwen3, llama.cpp, 8 bits, ONNX")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="another folder for the result")
    parser.add_argument("--text", type=Path, metavar="FILE", help="held-out text to measure on; else the run's own")
    parser.set_defaults(run=run_export)


def run_export(args: argparse.Namespace) -> None:
    """Export a model and say what was measured."""
    from hf_scratch.export.run import export

    record = export(args.model, args.to, args.output, args.text, print)
    for name, found in record["measured"].items():
        print(f"{name or args.to}: {found}")


def add_import(parser: argparse.ArgumentParser) -> None:
    """Describe `import`."""
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a Qwen3 dense model")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder of the new checkpoint")
    parser.add_argument("--revision", default="main", help="commit, tag or branch of a Hub id (main)")
    parser.set_defaults(run=run_import)


def run_import(args: argparse.Namespace) -> None:
    """Import a stock checkpoint."""
    from hf_scratch.export.transformers import import_stock

    checks = import_stock(args.model, args.revision, args.output)
    print(f"{args.output} holds a Scratch checkpoint; {len(checks)} checks passed, logits equal to the original's.")


# ---- use ----


def add_browser(parser: argparse.ArgumentParser) -> None:
    """Describe `browser`."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--port", type=int, default=7861, help="port on this machine (7861)")
    parser.set_defaults(run=run_browser)


def run_browser(args: argparse.Namespace) -> None:
    """Serve the page until it is stopped."""
    from hf_scratch.export.browser_server import serve

    serve(args.folder, args.port, print)


def add_speaker(parser: argparse.ArgumentParser) -> None:
    """Describe which model is to talk, and how it draws its tokens."""
    add_model(parser)
    parser.add_argument("--temperature", type=float, metavar="T", help="0 is greedy; the model's own if not given")
    parser.add_argument("--seed", type=int, help="same seed, same answer; a new one if not given")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="longest answer in tokens (256)")


def add_chat(parser: argparse.ArgumentParser) -> None:
    """Describe `chat`."""
    add_speaker(parser)
    parser.add_argument("--system", default="", metavar="TEXT", help="system prompt")
    parser.set_defaults(run=run_chat)


def run_chat(args: argparse.Namespace) -> None:
    """Talk to a model."""
    from .chat import chat, load_speaker

    speaker = load_speaker(args.model, args.revision, args.trust_remote_code)
    chat(speaker, sampling(args), args.system, sys.stdin, sys.stdout)


def add_generate(parser: argparse.ArgumentParser) -> None:
    """Describe `generate`."""
    add_speaker(parser)
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="beginning of the text; the input if not given")
    parser.set_defaults(run=run_generate)


def run_generate(args: argparse.Namespace) -> None:
    """Let a model continue a text."""
    from .chat import continue_text, load_speaker

    speaker = load_speaker(args.model, args.revision, args.trust_remote_code)
    prompt = sys.stdin.read() if args.prompt is None else args.prompt
    continue_text(speaker, sampling(args), prompt, sys.stdout)


def sampling(args: argparse.Namespace) -> dict[str, int | float | None]:
    """Return how tokens are drawn."""
    return {"temperature": args.temperature, "seed": args.seed, "max_new_tokens": args.max_new_tokens}


if __name__ == "__main__":
    main()
