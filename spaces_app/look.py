"""How the page looks: the reader's own fonts, colours with enough contrast in light and dark, and what it may load."""

import gradio as gr

# What a page may load: text of a model or a person is Markdown, which can hold the address of a picture elsewhere.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'; base-uri 'self'"
HEAD = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'


def theme() -> gr.themes.Base:
    """A calm look; a web font would be a request to somebody else's server."""
    look = gr.themes.Default(primary_hue="teal", secondary_hue="teal", neutral_hue="slate", radius_size="md")
    # The stock greys of small text, and white on the stock button, have too little contrast (WCAG asks for 4.5 to 1).
    look.set(
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
    )
    look.font = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
    look.font_mono = "ui-monospace, 'SF Mono', Consolas, monospace"
    return look


CSS = """
.gradio-container { max-width: 68rem !important; margin-inline: auto !important; }
#title h1 { margin-bottom: 0; }
#title p { color: var(--body-text-color-subdued); margin-top: 0.25rem; }
.tab-container button.selected { color: var(--primary-700) !important; }
.dark .tab-container button.selected { color: var(--primary-300) !important; }
#conversation .prose { overflow-wrap: anywhere; }
#message [data-testid="submit-button"] { background: var(--primary-700); color: white; }
footer .divider { display: none !important; }
#status { min-height: 1.5rem; }
#status *, .quiet * { font-size: var(--text-sm); }
.quiet { color: var(--body-text-color-subdued); }
#status [data-testid="status-tracker"].hide { display: none; }
#compare-status { min-height: 1.5rem; }

@media (max-width: 480px) {
  .tab-container button { padding: 0 0.5rem !important; }
  #choices button { padding-inline: 0.25rem; font-size: var(--text-md); white-space: nowrap; }
}

.tokens { display: flex; flex-wrap: wrap; gap: 3px; }
.tokens .token {
  font: 0.95rem var(--font-mono); white-space: pre; padding: 0.3rem 0.3rem; min-width: 1rem; min-height: 1.9rem;
  border-radius: 4px; border: 1px solid var(--border-color-primary); color: var(--body-text-color); cursor: pointer;
  background: color-mix(in srgb, #f97316 calc(var(--loud) * 55%), var(--background-fill-primary));
}
.tokens .token.drawn { border-style: dashed; border-color: var(--primary-500); }
.tokens .token[aria-pressed="true"] { outline: 2px solid var(--primary-600); outline-offset: 1px; }
.tokens .token:focus-visible { outline: 3px solid var(--primary-500); }

table.bars, table.figures { width: 100%; border-collapse: collapse; font-size: var(--text-sm); }
table.bars th, table.bars td, table.figures th, table.figures td { padding: 0.25rem 0.4rem; text-align: right;
  border: 0; font-weight: normal; white-space: nowrap; color: var(--body-text-color); }
table.bars th:first-child, table.figures th:first-child { text-align: left; }
table.bars code { white-space: pre; font: 0.9rem var(--font-mono); }
table.bars .bar { width: 60%; min-width: 5rem; position: relative; }
table.bars .bar span { display: block; height: 0.5rem; border-radius: 0 3px 3px 0; min-width: 1px; }
table.bars .own { background: color-mix(in srgb, var(--body-text-color) 35%, transparent); }
table.bars .used { background: var(--primary-500); margin-top: 1px; }
table.bars i { display: inline-block; width: 0.6rem; height: 0.6rem; margin-right: 0.3rem; border-radius: 2px; }
table.figures { margin: 0.25rem 0; }
table.figures caption { text-align: left; font-weight: 600; padding: 0.5rem 0.4rem; color: var(--body-text-color); }
table.figures thead th { font-weight: 600; border-bottom: 1px solid var(--border-color-primary); }
table.figures tbody tr + tr > * { border-top: 1px solid var(--border-color-primary); }
#facts table.figures td { text-align: left; } #facts table.figures th { text-align: left; }
#facts td:last-child { white-space: normal; min-width: 16rem; }
@media (max-width: 480px) {
  table.figures th:first-child { white-space: normal; min-width: 6rem; }
  table.bars .bar { min-width: 2rem; }
}
.scroll, .attention { overflow-x: auto; max-width: 100%; contain: inline-size; }
#inside-columns > *, #map, #strip, #bars { min-width: 0; }
.attention { max-height: 48rem; overflow-y: auto; }
.attention text { font: 10px var(--font-mono); fill: var(--body-text-color); white-space: pre; }
.attention .cells { fill: var(--primary-600); }
.dark .attention .cells { fill: var(--primary-300); }
.attention .ground { stroke: var(--border-color-primary); }
.attention .chosen { stroke: var(--primary-500); stroke-width: 1.5; }
"""
