from baltoro.cli import main

main()
