"""The frame of a transcript's page: its style, and a policy that lets nothing be loaded or run."""

from __future__ import annotations

__all__ = ["HEAD", "TAIL"]

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
img-src data:; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>
:root {
  color-scheme: light dark;
  --text: #1c1e21; --dim: #666c75; --back: #fcfcfb; --box: #f1f2f3; --line: #dcdfe3;
  --user: #e8f0fc; --accent: #1d5fbf; --bad: #b3261e; --add: #e3f5e5; --del: #fde8e6; --hunk: #e9eef6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --text: #e4e6e9; --dim: #9aa1ab; --back: #16181b; --box: #202327; --line: #353a41;
    --user: #1d2a3d; --accent: #8ab4f8; --bad: #f2988f; --add: #17321d; --del: #402020; --hunk: #222c3b;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 46rem; padding: 2rem 1.25rem 4rem; background: var(--back); color: var(--text);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  overflow-wrap: anywhere;
}
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 1rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: .85rem; margin: 0 0 .35rem; color: var(--dim); font-weight: 600; }
h4, h5, h6 { font-size: 1rem; margin: 1rem 0 .3rem; }
p, ul, ol, blockquote { margin: .5rem 0; }
ul, ol { padding-left: 1.5rem; }
blockquote { border-left: 3px solid var(--line); padding-left: .9rem; color: var(--dim); }
a { color: var(--accent); }
hr { border: 0; border-top: 1px solid var(--line); }
header dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0; }
header { font-size: .9rem; }
header dt { color: var(--dim); }
header dd { margin: 0; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .86em; }
code { background: var(--box); border-radius: 3px; padding: .1em .3em; }
pre {
  background: var(--box); border-radius: 6px; padding: .7rem .9rem; margin: .5rem 0; line-height: 1.45;
  white-space: pre-wrap; max-height: 32rem; overflow: auto;
}
pre code { background: none; padding: 0; font-size: 1em; }
time { color: var(--dim); font-size: .78rem; font-weight: 400; float: right; }
small { font-size: .8em; color: var(--dim); }
img { max-width: 100%; }
section, details { margin: 1rem 0; }
.user { background: var(--user); border-radius: 8px; padding: .7rem 1rem; }
.error { border-left: 3px solid var(--bad); padding-left: .9rem; }
.asked { border-left: 3px solid var(--accent); padding-left: .9rem; }
.note, .file { color: var(--dim); font-size: .88rem; }
.bad { color: var(--bad); }
.kind { color: var(--dim); font-size: .82rem; }
details { border: 1px solid var(--line); border-radius: 6px; padding: .35rem .8rem; }
details > summary { cursor: pointer; font-size: .92rem; }
details.thought { border-style: dashed; color: var(--dim); }
details h4 { font-size: .8rem; color: var(--dim); margin: .8rem 0 .2rem; }
.plan ul { list-style: none; padding-left: 0; }
.plan li::before { content: "\\2610\\00a0\\00a0"; }
.plan li.done::before { content: "\\2611\\00a0\\00a0"; }
.plan li.done { color: var(--dim); }
.plan li.now { font-weight: 600; }
.diff { padding: .5rem 0; }
.diff span { display: block; padding: 0 .9rem; }
.diff .add { background: var(--add); }
.diff .del { background: var(--del); }
.diff .hunk { background: var(--hunk); color: var(--dim); }
@media print { details { break-inside: avoid; } pre { max-height: none; } }
</style>
</head>
<body>
"""

TAIL = "</main>\n</body>\n</html>\n"
