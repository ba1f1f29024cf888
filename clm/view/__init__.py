"""A look at a model in the browser, finished or in training: `clm view`, `clm train --viewer`.

What is drawn, when and how large (`easel`), what is laid over it (`compare`) and what buttons do (`visit`) know no browser;
`page` shows it in one, through viser, which is imported only when a server starts (`server`).
"""
