"""World models: distributions, the two kinds of dynamics (RSSM and VTA), and what they predict."""
