"""The guide: chapters, their quizzes and exercises, and what builds them as HTML and PDF."""
